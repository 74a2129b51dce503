"""The seam: what goes before vLLM's own classes, for every audio model alike.

The processor, in the process where requests arrive, takes placeholders out of what stands for a clip and writes what it
has promised beside the clip's features. The model, where the encoder runs, pools the encoder's rows to that. The share
is part of a clip's hash, by which vLLM caches its rows and those of the KV cache that follow from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import DictEmbeddingItems, EmbeddingItems
from vllm.multimodal.processing import PromptUpdateDetails

from ...backends import serving
from . import engine
from .batches import EncoderBatches
from .promise import Promise, cut, keep_promise
from .settings import KEY, settled, share, without_share

AUDIO = "audio"
PROMISE = "affinity_pool_promise"
"""Among a clip's features: its :class:`Promise`."""
BATCH = "affinity_pool_batch"
"""Among a clip's features: the number of the batch in which it may be encoded."""

UNPOOLED = object()
"""Under the key in vLLM's dummy requests: memory is measured with clips as the encoder makes them."""


class PooledProcessor:
    """Goes before a model's own processor."""

    info: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._engine = engine.of(self.info.ctx.model_config)
        self._batches = EncoderBatches(self._engine.encoder_budget)

    def get_dummy_inputs(self, seq_len: int, mm_counts: Any, mm_options: Any) -> Any:
        inputs = super().get_dummy_inputs(seq_len, mm_counts, mm_options)  # type: ignore[misc]
        return replace(inputs, hf_processor_mm_kwargs={**inputs.hf_processor_mm_kwargs, KEY: UNPOOLED})

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        request = inputs.hf_processor_mm_kwargs
        kwargs = settled(request, self._share(request, inputs.mm_data_items.get(AUDIO)))
        try:
            return super().apply(replace(inputs, hf_processor_mm_kwargs=kwargs), timing_ctx)  # type: ignore[misc]
        except UnfitPromptError as error:
            for name in error.processed if inputs.cache is not None else ():
                inputs.cache.invalidate(name)  # vLLM took it for sent, and would send the next request without it
            raise

    def _share(self, request: Mapping[str, Any], clips: Any) -> float:
        if request.get(KEY) is UNPOOLED:
            return 1.0
        keep = self._engine.settings.of_request(request)
        if keep == 1 or not clips:
            return 1.0
        if isinstance(clips, (EmbeddingItems, DictEmbeddingItems)):
            if request.get(KEY) is None:
                return 1.0
            raise ValueError(f"{KEY}: audio given as embeddings is taken as it is, so keep={keep:g} cannot be had")
        if self._engine.refusal:
            raise ValueError(f"{KEY}: keep={keep:g} cannot be had: {self._engine.refusal}")
        return keep

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        return super()._apply_hf_processor_main(mm_items, without_share(hf_kwargs))  # type: ignore[misc]

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, Any]) -> Any:
        return super()._get_mm_fields_config(hf_inputs, without_share(hf_processor_mm_kwargs))  # type: ignore[misc]

    def _get_mm_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Any:
        """What replaces a clip's place in the prompt, with as few placeholders as are promised."""
        request, keep = without_share(hf_processor_mm_kwargs), share(hf_processor_mm_kwargs)
        updates = super()._get_mm_prompt_updates(mm_items, request, out_mm_kwargs)  # type: ignore[misc]
        if keep is None or not updates.get(AUDIO):  # none: all clips come from vLLM's cache
            return updates
        clips = zip(out_mm_kwargs[AUDIO], updates[AUDIO], strict=True)
        return {**updates, AUDIO: [self._promise(clip, alternatives, keep) for clip, alternatives in clips]}

    def _promise(self, clip: Any, alternatives: Any, keep: float) -> list[Any]:
        cuts = [Kept.of(update.content, keep) for update in alternatives]
        promises = {found.promise for found in cuts}
        if len(promises) > 1:
            raise ValueError(f"{KEY}: a clip may take another number of tokens in another place: {promises}")
        (promise,) = promises
        batched = MultiModalFieldConfig.batched(AUDIO, keep_on_cpu=True).field
        shared = MultiModalFieldConfig.shared(AUDIO, 1, keep_on_cpu=True).field
        (clip[PROMISE],) = batched.build_elems(AUDIO, PROMISE, torch.tensor([promise]))
        (clip[BATCH],) = shared.build_elems(AUDIO, BATCH, torch.tensor(self._batches.number(promise.encoded)))
        return [replace(update, content=found) for update, found in zip(alternatives, cuts, strict=True)]

    def _maybe_apply_prompt_updates(self, mm_items: Any, mm_res: Any) -> Any:
        """Look whether the prompt that came of it has the placeholders that were promised, all of them and no more."""
        prompt, placeholders = super()._maybe_apply_prompt_updates(mm_items, mm_res)  # type: ignore[misc]
        contents = cut_contents(mm_res)
        if contents:
            promised = [content.promise.rows for content in contents]
            found = [place.to_range().get_num_embeds() for place in placeholders.get(AUDIO, ())]
            in_all = sum(map(prompt.count, {token for content in contents for token in content.placeholders()}))
            if found != promised:
                raise UnfitPromptError(
                    mm_res,
                    f"the prompt has {found} placeholders of clips that are promised {promised}: audio that is not in "
                    "one piece (use_audio_in_video) cannot be pooled, ask for keep=1",
                )
            if in_all != sum(promised):
                raise UnfitPromptError(
                    mm_res,
                    f"the prompt has {in_all} audio placeholders and its clips take {sum(promised)}: its text must not "
                    "hold placeholders of its own where clips are pooled, take them out or ask for keep=1",
                )
        return prompt, placeholders


class UnfitPromptError(ValueError):
    """A prompt does not have the placeholders that its clips are promised."""

    def __init__(self, mm_res: Any, words: str) -> None:
        super().__init__(f"{KEY}: {words}")
        self.processed: list[Any] = [
            name
            for modality, names in mm_res.hashes.items()
            for name, features in zip(names, mm_res.kwargs[modality], strict=True)
            if features is not None
        ]
        """Hashes of clips, images and videos whose features were made for this request."""


def cut_contents(mm_res: Any) -> list[Kept]:
    """What replaces each clip's place in a prompt, of all clips; none if this request is not pooled."""
    contents = [alternatives[0].content for alternatives in mm_res.prompt_updates.get(AUDIO, ())]
    return contents if any(isinstance(content, Kept) for content in contents) else []


@dataclass
class Kept(PromptUpdateDetails):
    """What replaces a clip's place in the prompt, with the placeholders that are left."""

    promise: Promise = field(kw_only=True)

    @classmethod
    def of(cls, content: PromptUpdateDetails, keep: float) -> Kept:
        is_embed = None if content.is_embed is None else content.is_embed(content.full)
        found = cut(content.full, is_embed, keep)
        left = None if is_embed is None else partial(_mask, found.is_embed)
        return cls(found.tokens, left, promise=found.promise)

    def placeholders(self) -> set[int]:
        """Their token ids."""
        if self.is_embed is None:
            return set(self.full)
        return {token for token, embed in zip(self.full, self.is_embed(self.full).tolist(), strict=True) if embed}


def _mask(mask: torch.Tensor, tokens: list[int]) -> torch.Tensor:
    return mask


class PooledModel:
    """Goes before a model's own class."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        device = next(self.parameters()).device  # type: ignore[attr-defined]
        if serving(device) == "reference":
            engine.logger().warning(
                "audio tokens on %s are pooled by a loop in Python, slowly: affinity_pool.backends() says why", device
            )

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """The encoder's rows, a tensor ``[rows, D]`` of each clip, pooled where a promise lies with it."""
        promises = kwargs.pop(PROMISE, None)
        kwargs.pop(BATCH, None)
        clips = super().embed_multimodal(**kwargs)  # type: ignore[misc]
        if promises is None:
            return clips
        kept = [Promise(*promise) for promise in promises.tolist()]
        if (made := [clip.shape[0] for clip in clips]) != [promise.encoded for promise in kept]:
            engine.logger().warning("the encoder made %s rows of clips for which vLLM's formula says %s", made, kept)
        return tuple(keep_promise(clip, promise) for clip, promise in zip(clips, kept, strict=True))


def pooled(base: Any, processor: type, model: type) -> type:
    """``base``, an audio model of vLLM, with pooling."""
    own = base._processor_factory
    with_pooling = type(f"Pooled{own.processor.__name__}", (processor, own.processor), {})
    register = MULTIMODAL_REGISTRY.register_processor(with_pooling, info=own.info, dummy_inputs=own.dummy_inputs)
    return register(type(base.__name__, (model, base), {"__module__": __name__}))
