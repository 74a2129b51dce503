"""Two models for which the seam alone is not enough."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from .seam import AUDIO, Kept, PooledModel, PooledProcessor, UnfitPromptError, cut_contents


class ExpandedPromptProcessor(PooledProcessor):
    """Of Voxtral, whose prompts arrive with all placeholders written out, so that vLLM only looks where they are."""

    def _maybe_apply_prompt_updates(self, mm_items: Any, mm_res: Any) -> Any:
        if contents := cut_contents(mm_res):
            mm_res = mm_res._replace(prompt_ids=_shortened(mm_res, contents))
        return super()._maybe_apply_prompt_updates(mm_items, mm_res)


def _shortened(mm_res: Any, contents: list[Kept]) -> list[int]:
    """The prompt with each clip's run of placeholders cut to those promised."""
    audio = set().union(*(content.placeholders() for content in contents))
    runs = [(is_audio, list(run)) for is_audio, run in groupby(mm_res.prompt_ids, key=audio.__contains__)]
    found = [len(run) for is_audio, run in runs if is_audio]
    expected = [content.promise.encoded for content in contents]
    if found != expected:
        raise UnfitPromptError(mm_res, f"the prompt has runs of {found} audio placeholders for clips of {expected}")
    clips = iter(contents)
    return [token for is_audio, run in runs for token in (next(clips).full if is_audio else run)]


class OmniModel(PooledModel):
    """Of Qwen2.5-Omni, which numbers positions (M-RoPE) by the length of a clip's features, not of its placeholders."""

    def iter_mm_features(self, mm_features: Any) -> Iterator[tuple[int, str, dict[str, Any]]]:
        rows = {one.mm_position.offset: one.mm_position.length for one in mm_features if one.modality == AUDIO}
        for offset, modality, data in super().iter_mm_features(mm_features):  # type: ignore[misc]
            if modality == AUDIO:
                data = {**data, "audio_feature_length": 4 * rows[offset]}  # of which vLLM makes so many rows
            yield offset, modality, data
