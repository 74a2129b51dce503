"""Similarity dynamics: how alike audio tokens are, layer by layer, as the decoder works on them.

Three figures of each layer's hidden states, of the audio positions alone (paper, "similarity dynamics"): neighbour
similarity, the mean cosine of adjacent tokens; the global mean, the mean cosine of all pairs; and the intra-word
maximum, the mean over words of the largest cosine of adjacent tokens inside a word. One prefill of a recording gives
all of them: the sum of unit vectors holds the sum of all their cosines, so no T x T matrix is ever made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ....models.families import family_of
from ...data import Audio, Utterance
from ...data.alignment import word_times
from ...data.spans import token_spans
from ...errors import InputError
from ...groups import Span
from ...metrics import Metric, interval, share
from ...runs.batches import Batch, Prepare, Record, problems
from ...subject.lslm import Lslm


@dataclass(frozen=True)
class Similarity:
    """Of one recording's audio tokens at one layer; None where it has too few tokens, or no words."""

    neighbour: float | None
    """Mean cosine of adjacent tokens."""
    overall: float | None
    """Mean cosine of all pairs of different tokens."""
    intra_word: float | None
    """Mean over words of two tokens or more of the largest cosine of adjacent ones."""


def similarity(x: Tensor, words: Sequence[Span] = ()) -> Similarity:
    """Figures of ``[T, D]`` hidden states, in float32; ``words`` are spans of rows. Time T D, memory T D."""
    unit = F.normalize(x.float(), dim=-1)
    count = unit.shape[0]
    if count < 2:
        return Similarity(None, None, None)
    adjacent = (unit[1:] * unit[:-1]).sum(-1)
    pairs = unit.double().sum(0).square().sum() - unit.double().square().sum()
    inside = [adjacent[word.start : word.end - 1].max() for word in words if word.end - word.start > 1]
    return Similarity(
        float(adjacent.mean()),
        float(pairs / (count * (count - 1))),
        float(torch.stack(inside).mean()) if inside else None,
    )


@dataclass(frozen=True)
class Measuring:
    """The similarities of a batch at every layer: the work of a :func:`affinity_pool.study.runs.run`.

    ``batch.known`` are each recording's words as spans of its audio tokens, or None where they are not known.
    """

    lslm: Lslm

    def __call__(self, batch: Batch) -> list[list[Record]]:
        audio = self.lslm.audio_positions(batch.inputs)
        layers: list[list[Similarity]] = [[] for _ in batch.utterances]

        def measure(hidden: Tensor) -> None:
            for row, words in enumerate(batch.known):
                layers[row].append(similarity(hidden[row, audio[row]], words or ()))

        with hidden_states(self.lslm.model, measure):
            self.lslm.generate(batch.inputs, longest=1)
        return [
            [
                {
                    "utterance": utterance.id,
                    "seconds": round(batch.audio[row].seconds, 3),
                    "audio_tokens": batch.audio_tokens[row],
                    "words": None if batch.known[row] is None else len(batch.known[row]),
                    "neighbour": [figure.neighbour for figure in layers[row]],
                    "overall": [figure.overall for figure in layers[row]],
                    "intra_word": [figure.intra_word for figure in layers[row]],
                }
            ]
            for row, utterance in enumerate(batch.utterances)
        ]


@contextmanager
def hidden_states(model: Any, measure: Callable[[Tensor], None]) -> Iterator[None]:
    """Show ``measure`` what enters each decoder layer of a prefill, in order, and what leaves the last one."""
    layers = family_of(model).decoder(model).layers

    def entering(layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        measure(args[0])

    def leaving(layer: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        measure(output[0] if isinstance(output, tuple) else output)

    hooks = [layer.register_forward_pre_hook(entering, with_kwargs=True) for layer in layers]
    hooks.append(layers[-1].register_forward_hook(leaving))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def words_of(source: str | None, lslm: Lslm) -> Prepare:
    """Each recording's words as spans of its audio tokens; None where nobody knows their times."""

    def find(utterance: Utterance, audio: Audio, tokens: int) -> list[Span] | None:
        try:
            words = word_times(utterance, audio, source)
        except InputError:
            if source is not None:
                raise
            return None
        return token_spans(words, lslm.token_seconds, tokens)

    return find


FIGURES = ("neighbour", "overall", "intra_word")
WEIGHT = {"neighbour": "audio_tokens", "overall": "audio_tokens", "intra_word": "words"}
MEAN = Metric("mean", "mean", "higher", lambda reference, answer, question="": np.zeros(2), share, "mean")


def summary(lslm: Lslm, plan: Record, records: Sequence[Record], provenance: Record) -> Record:
    """Means over recordings, weighted by tokens or words, layer by layer, with intervals; as JSON."""
    usable = [record for record in records if "problem" not in record]
    layers = []
    for layer in range(lslm.depth + 1):
        found: Record = {"layer": layer}
        for name in FIGURES:
            known = [(r[name][layer], r[WEIGHT[name]]) for r in usable if r[name][layer] is not None]
            counts = np.array([[value * weight, weight] for value, weight in known])
            mean = interval(counts, MEAN) if known else None
            found[name] = None if mean is None else {
                "value": round(mean.value, 6),
                "interval_95": [None if b is None else round(b, 6) for b in (mean.low, mean.high)],
            }  # fmt: skip
        layers.append(found)
    return {
        "command": "dynamics",
        "config": plan,
        "provenance": provenance,
        "unusable": problems(records),
        "utterances": len(usable),
        "with_words": sum(record["words"] is not None for record in usable),
        "audio_tokens": sum(record["audio_tokens"] for record in usable),
        "layers": layers,
    }
