"""Conditions: ways to run one model on the same recordings, answered batch by batch and compared pair by pair.

A condition is unpooled, or pools at sites that may depend on the batch (an oracle knows where words are, a baseline has
the token budget that Affinity Pooling came to on the very same recording), or changes the recording itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...models.settings import Pooling
from ..data import Audio, Utterance
from ..errors import InputError
from ..metrics import Metric, Normaliser, for_task
from ..subject.lslm import Lslm
from ..subject.subject import LONGEST_ANSWER
from .batches import Batch, Prepare
from .results import Answer, Facts


@dataclass(frozen=True)
class Condition:
    """One way to run the model."""

    name: str
    """Unique in a run."""
    facts: Facts = field(default_factory=dict)
    """What it is, as JSON: goes into the results."""
    pooling: Pooling | Callable[[Batch], Pooling] | None = None
    """Where and how it pools. A function sees the batch, with ``batch.kept`` of the conditions before this one."""
    altered: Callable[[Batch, int], Audio] | None = None
    """The recording of a row as the model is to get it; None: as it is."""


UNPOOLED = Condition("unpooled")


@dataclass(frozen=True)
class Answering:
    """Answers batches under every condition: the work of a :func:`affinity_pool.study.runs.batches.run`."""

    lslm: Lslm
    conditions: Sequence[Condition]
    longest: int = LONGEST_ANSWER
    """New tokens of an answer; the paper's limit."""
    judge: Metric | None = None
    """Looks at each answer to a question as it comes: it may be a model's call, and its verdict is kept."""
    normaliser: Normaliser = "plain"
    """Of texts whose words or characters are counted."""
    first_token: bool = False
    """Also record how far the first token's distribution moved from the first condition's: KL divergence, nats."""

    def __call__(self, batch: Batch) -> list[list[Answer]]:
        records: list[list[Answer]] = [[] for _ in batch.utterances]
        as_recorded = [condition for condition in self.conditions if condition.altered is None]
        otherwise = [condition for condition in self.conditions if condition.altered is not None]
        first: list[Tensor] = []
        with self.lslm.encoded_once():
            answers = [self._answer(batch, condition, first) for condition in as_recorded]
        answers += [self._answer(batch, condition, first) for condition in otherwise]
        for of_condition in answers:
            for row, record in zip(records, of_condition, strict=True):
                row.append(record)
        return records

    def _answer(self, batch: Batch, condition: Condition, first: list[Tensor]) -> list[Answer]:
        inputs = batch.inputs
        if condition.altered is not None:
            inputs = self.lslm.batch([condition.altered(batch, row) for row in range(len(batch.audio))], batch.prompts)
        pooling = condition.pooling(batch) if callable(condition.pooling) else condition.pooling
        layers, kept = [], []
        groups: Tensor | None = None
        seen: list[Tensor] = []
        with nullcontext() if pooling is None else self.lslm.patched(pooling) as handle:
            said = self.lslm.generate(inputs, self.longest, seen.append if self.first_token else None)
            if handle is not None and handle.stats is not None:
                layers = [site.layer for site in handle.stats.sites]
                kept = [site.audio_after for site in handle.stats.sites]
                groups = handle.stats.sites[0].segment_ids
        audio = self.lslm.audio_positions(inputs).sum(1)
        text = self.lslm.text_tokens(inputs).tolist()
        if condition.altered is not None:  # a shorter recording is a reduction at the input
            layers, kept = [0, *layers], [audio.tolist(), *kept]
        batch.kept[condition.name] = kept
        records: list[Answer] = [
            {
                "utterance": utterance.id,
                "condition": condition.name,
                "facts": dict(condition.facts),
                "prompt": batch.prompts[row],
                "task": utterance.task,
                "language": utterance.language,
                "metric": utterance.metric,
                "normaliser": self.normaliser,
                "reference": utterance.text,
                "answer": answer,
                "seconds": round(batch.audio[row].seconds, 3),
                "text_tokens": text[row],
                "audio_tokens": batch.audio_tokens[row],
                "layers": layers,
                "kept": [site[row] for site in kept],
            }
            for row, (utterance, answer) in enumerate(zip(batch.utterances, self.lslm.texts(said), strict=True))
        ]
        if self.lslm.pooled_depth is None:
            heard = self.lslm.heard_positions(inputs, [audio.seconds for audio in batch.audio])
            for row, record in enumerate(records):
                record["heard"] = _heard(heard[row], None if groups is None else groups[row])
        if self.first_token:
            first += seen[: 1 - len(first)]
            for record, moved in zip(records, divergence(first[0], seen[0]), strict=True):
                record["first_token_kl"] = moved
        if self.judge is not None:
            for record in records:
                if record["reference"] is not None and metrics_of(record)[0].name == "exact":
                    counts = self.judge.counts(record["reference"], record["answer"], record["prompt"])
                    record["judged"] = [None if np.isnan(count) else count for count in counts.tolist()]
        return records


def _heard(heard: Tensor, groups: Tensor | None) -> list[int]:
    """Tokens of a recording itself, and of how many groups they are a part."""
    tokens = int(heard.sum())
    return [tokens] if groups is None else [tokens, len({group for group in groups[heard].tolist() if group >= 0})]


def metrics_of(record: Answer) -> tuple[Metric, ...]:
    """By which an answer is scored, the headline first."""
    return for_task(record["task"], record["metric"], record["language"], record["normaliser"])


def scorable(lslm: Lslm, prepare: Prepare | None = None, normaliser: Normaliser = "plain") -> Prepare:
    """Refuse a recording whose right answer no metric can use or the model cannot spell, then let ``prepare`` look.

    Raises:
        InputError: such as a reference without words, or with words that a closed vocabulary does not have.
    """

    def check(utterance: Utterance, audio: Audio, tokens: int) -> Any:
        if utterance.text is not None:
            if not lslm.can_spell(utterance.text):
                raise InputError(f"has a text with words outside the vocabulary of {lslm.name}: {utterance.text!r}")
            for metric in for_task(utterance.task, utterance.metric, utterance.language, normaliser):
                metric.counts(utterance.text, "")
        return None if prepare is None else prepare(utterance, audio, tokens)

    return check


def divergence(logits: Tensor, other: Tensor) -> list[float]:
    """KL divergence of each row's distribution from that of ``other``, in nats; both ``[B, V]``."""
    p, q = logits.double().log_softmax(-1), other.double().log_softmax(-1)
    return torch.where(p.isfinite(), p.exp() * (p - q), 0).sum(-1).clamp(min=0).tolist()
