"""Similarity dynamics: how alike audio tokens are, layer by layer, as the decoder works on them.

Three figures of each layer's hidden states, of the audio positions alone (paper, "similarity dynamics"): neighbour
similarity, the mean cosine of adjacent tokens; the global mean, the mean cosine of all pairs; and the intra-word
maximum, the mean over words of the largest cosine of adjacent tokens inside a word. One prefill of a recording gives
all of them: the sum of unit vectors holds the sum of all their cosines, so no T x T matrix is ever made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...data import Audio, Utterance
from ...data.alignment import word_times
from ...data.spans import token_spans
from ...errors import InputError
from ...groups import Span
from ...metrics import Metric, interval, share
from ...runs.batches import Batch, Prepare
from ...runs.results import DynamicsSummary, Estimate, Finished, Similarities, SimilarityFigure
from ...runs.scores import rounded
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
    """The similarities of a batch at every layer: the work of a :func:`affinity_pool.study.runs.batches.run`.

    ``batch.known`` are each recording's words as spans of its audio tokens, or None where they are not known.
    """

    lslm: Lslm

    def __call__(self, batch: Batch) -> list[list[Similarities]]:
        audio = self.lslm.heard_positions(batch.inputs, [audio.seconds for audio in batch.audio])
        layers: list[list[Similarity]] = [[] for _ in batch.utterances]

        def measure(hidden: Tensor) -> None:
            for row, words in enumerate(batch.known):
                layers[row].append(similarity(hidden[row, audio[row]], words or ()))

        with self.lslm.hidden_states(measure):
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


def word_spans(source: str | None, lslm: Lslm) -> Prepare:
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


WEIGHT: dict[SimilarityFigure, Literal["audio_tokens", "words"]] = {
    "neighbour": "audio_tokens",
    "overall": "audio_tokens",
    "intra_word": "words",
}
MEAN = Metric("mean", "mean", "higher", lambda reference, answer, question="": np.zeros(2), share, "mean")


def summarise(lslm: Lslm, run: Finished[Similarities]) -> DynamicsSummary:
    """Means over recordings, weighted by tokens or words, layer by layer, with intervals."""

    def mean(layer: int, figure: SimilarityFigure) -> Estimate | None:
        known = [(row[figure][layer], row[WEIGHT[figure]]) for row in run.rows]
        counts = [[value * weight, weight] for value, weight in known if value is not None and weight is not None]
        if not counts:
            return None
        found = rounded(interval(np.array(counts), MEAN))
        return {"value": found["value"], "interval_95": found["interval_95"]}

    return {
        "command": "dynamics",
        "config": run.settings,
        "provenance": run.provenance,
        "unusable": list(run.unusable),
        "utterances": len(run.rows),
        "with_words": sum(row["words"] is not None for row in run.rows),
        "audio_tokens": sum(row["audio_tokens"] for row in run.rows),
        "layers": [
            {
                "layer": layer,
                "neighbour": mean(layer, "neighbour"),
                "overall": mean(layer, "overall"),
                "intra_word": mean(layer, "intra_word"),
            }
            for layer in range(len(lslm.audio_layers) + 1)
        ],
    }
