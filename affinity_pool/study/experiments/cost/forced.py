"""Prompts of a planned size whose audio pools to a planned number of tokens, whatever the model's weights.

With random weights similarities mean nothing. So a site pools, in place of the hidden states, rows of their shape
that hold the groups wanted (:class:`Forced`): the op does all its work, on other numbers, and nothing is added to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ....models import PrefillStats, Site
from ....results import PooledPadded
from ...subject.subject import Subject

INPUT_RETENTION, FINAL_RETENTION = 0.7864, 0.1491  # of the audio tokens; the paper's Dual Affinity Pooling, aggressive
SPREAD = 0.1  # rows of a batch keep up to a tenth more or less: batches of speech end up uneven, and pay for padding
FRAMES = 100  # mel frames a second
BEFORE, AFTER = 14, 16  # text tokens of a chat prompt around the clips; each clip has a begin and an end token besides


@dataclass(frozen=True)
class Speech:
    """A batch of equally long recordings, as many clips each as the encoder needs, and how many tokens are to be left.

    ``clips[stage][row]`` are the audio tokens of a row's clips as they enter the input site (0), the deep site (1), and
    as they leave it (2).
    """

    frames: tuple[int, ...]
    """Mel frames of each clip."""
    clips: tuple[tuple[tuple[int, ...], ...], ...]

    @property
    def batch(self) -> int:
        return len(self.clips[0])

    def tokens(self, stage: int) -> list[int]:
        """Of each row, text included."""
        return [BEFORE + AFTER + 2 * len(row) + sum(row) for row in self.clips[stage]]

    def audio_tokens(self, stage: int) -> int:
        """Of the whole batch."""
        return sum(map(sum, self.clips[stage]))

    def columns(self, stage: int, row: int) -> Iterator[tuple[bool, int, int]]:
        """Stretches of a row entering a site, as (is it audio, its tokens, the groups to make of them)."""
        yield False, BEFORE, BEFORE
        for tokens, groups in zip(self.clips[stage][row], self.clips[stage + 1][row], strict=True):
            yield False, 1, 1
            yield True, tokens, groups
            yield False, 1, 1
        yield False, AFTER, AFTER


def can_force(config: Any) -> bool:
    """Whether prompts can be made for a model of this config: a token for every four frames, as in Qwen2-Audio."""
    return getattr(config, "model_type", None) == "qwen2_audio"


def speech(config: Any, seconds: float, batch: int) -> Speech:
    """Cut recordings into clips that the encoder takes, and set what is kept of each: the paper's retentions."""
    longest = 2 * config.audio_config.max_source_positions
    whole, rest = divmod(round(seconds * FRAMES), longest)
    frames = (longest,) * whole + ((rest,) if rest else ())
    tokens = tuple(((n - 1) // 2 - 1) // 2 + 1 for n in frames)  # a quarter: convolution and pooling, of stride 2 each
    lean = torch.linspace(-SPREAD, SPREAD, batch).tolist() if batch > 1 else [0.0]

    def kept(retention: float) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(max(1, round(retention * (1 + more) * n)) for n in tokens) for more in lean)

    return Speech(frames, ((tokens,) * batch, kept(INPUT_RETENTION), kept(FINAL_RETENTION)))


def model_inputs(subject: Subject, spoken: Speech) -> dict[str, Tensor]:
    """What ``generate`` takes: text and features are noise, the places of the audio tokens are not."""
    config, device = subject.config, subject.device
    audio = _audio_columns(spoken, 0)
    ids = torch.randint(6, 100, audio.shape).masked_fill(audio, config.audio_token_index)
    longest = 2 * config.audio_config.max_source_positions
    there = torch.arange(longest) < torch.tensor(spoken.frames * spoken.batch)[:, None]
    features = torch.randn(
        there.shape[0], config.audio_config.num_mel_bins, longest, dtype=subject.model.dtype, device=device
    )
    return {
        "input_ids": ids.to(device),
        "attention_mask": torch.ones_like(ids).to(device),
        "input_features": features,
        "feature_attention_mask": there.long().to(device),
    }


@dataclass(frozen=True, eq=False)
class Forced:
    """A site's own pooling, of rows that hold given groups, whatever the hidden states are."""

    site: Site
    rows: Tensor
    """``[B, T, D]`` of the hidden states' shape and dtype, padded on the left."""
    lengths: Tensor
    audio: Tensor

    @classmethod
    def at(cls, site: Site, spoken: Speech, stage: int, dim: int, dtype: torch.dtype, device: torch.device) -> Forced:
        """Rows of a group repeat a random row with a fifth of noise (cosine 0.96), others are strangers (0 +- 0.02)."""
        width = max(spoken.tokens(stage))
        rows = torch.zeros(spoken.batch, width, dim, dtype=dtype, device=device)
        generator = torch.Generator(device).manual_seed(stage)
        random = partial(torch.randn, generator=generator, device=device)
        for row, length in enumerate(spoken.tokens(stage)):
            group = _group_ids(spoken, stage, row).to(device)
            noise = random(length, dim)
            rows[row, width - length :] = random(int(group[-1]) + 1, dim)[group].add_(noise, alpha=0.2).to(dtype)
        lengths = torch.tensor(spoken.tokens(stage), dtype=torch.int32, device=device)
        return cls(site, rows, lengths, _audio_columns(spoken, stage).to(device))

    def __call__(self, x: Tensor, lengths: Tensor | None, mergeable: Tensor) -> PooledPadded:
        if (x.shape, x.dtype) != (self.rows.shape, self.rows.dtype):
            raise RuntimeError(f"rows were made for {list(self.rows.shape)} {self.rows.dtype}, got {list(x.shape)}")
        return self.site.reduce(self.rows, lengths, mergeable)


def _group_ids(spoken: Speech, stage: int, row: int) -> Tensor:
    """``[T]``, counting groups from 0: those of a stretch are equally long, and none spans two."""
    ids, first = [], 0
    for _, tokens, groups in spoken.columns(stage, row):
        ids.append(first + torch.arange(tokens) * groups // tokens)
        first += groups
    return torch.cat(ids)


def _audio_columns(spoken: Speech, stage: int) -> Tensor:
    """``[B, T]`` bool, padded on the left."""
    width = max(spoken.tokens(stage))
    audio = torch.zeros(spoken.batch, width, dtype=torch.bool)
    for row, length in enumerate(spoken.tokens(stage)):
        flags = [torch.full((tokens,), is_audio) for is_audio, tokens, _ in spoken.columns(stage, row)]
        audio[row, width - length :] = torch.cat(flags)
    return audio


def check_forced(spoken: Speech, stats: PrefillStats | None) -> None:
    """Refuse to time a prefill whose groups are not those it was to have."""
    found = [site.tokens_after for site in stats.sites] if stats else []
    if found != [spoken.tokens(1), spoken.tokens(2)]:
        raise RuntimeError(f"tokens after the sites are {found}, not {[spoken.tokens(1), spoken.tokens(2)]} as planned")
