"""What a run's records come to: for each task and condition the metrics with their intervals, tokens left, operations.

Conditions are compared on the same utterances: differences are of pairs, and a recording that could not be used is
missing from all conditions alike.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...models import Site
from ...reference import rows_left
from ..metrics import Counts, Interval, Metric, interval, paired
from ..subject.lslm import Lslm
from ..subject.subject import Subject
from .conditions import UNPOOLED, metrics_of
from .results import Answer, ConditionResult, ConditionsSummary, CountedEstimate, Finished, MetricResult, ScoreResult


@dataclass(frozen=True)
class Score:
    """One metric of one condition over the utterances of one task."""

    metric: Metric
    value: Interval
    difference: Interval | None
    """To the unpooled model, in the metric's own unit; None for that model itself."""

    def json(self) -> ScoreResult:
        """As it goes into ``summary.json``, rounded."""
        difference = None if self.difference is None else rounded(self.difference)
        return ScoreResult(**rounded(self.value), difference=difference)


def by_condition(records: Sequence[Answer]) -> dict[str, list[Answer]]:
    """In the order of their first answer."""
    groups: dict[str, list[Answer]] = {}
    for record in records:
        groups.setdefault(record["condition"], []).append(record)
    return groups


def by_task(records: Sequence[Answer]) -> dict[str, list[Answer]]:
    """Answers with a reference by task, and by language where a task has several: metrics differ between them."""
    known = [record for record in records if record["reference"] is not None]
    languages: dict[str, set[str | None]] = {}
    for record in known:
        languages.setdefault(record["task"], set()).add(record["language"])
    groups: dict[str, list[Answer]] = {}
    for record in known:
        task, language = record["task"], record["language"]
        groups.setdefault(f"{task} ({language})" if len(languages[task]) > 1 else task, []).append(record)
    return groups


def score(
    records: Sequence[Answer], against: Mapping[str, str] | None = None, judge: Metric | None = None
) -> dict[str, dict[str, Score]]:
    """``[condition][metric]`` over the records of one task; the headline metric is the first, a judge's if it judged.

    ``against[condition]`` is the one whose figures are taken off its own; without it the unpooled model is, where it
    was run.
    """
    groups = by_condition(records)
    metrics = metrics_of(records[0])
    if judge is not None and "judged" in records[0]:
        metrics = (judge, *metrics)
    counts = {
        (name, metric.name): np.stack([_counts(metric, record) for record in group])
        for name, group in groups.items()
        for metric in metrics
    }

    def one(name: str, metric: Metric) -> Score:
        own, other = counts[name, metric.name], UNPOOLED.name if against is None else against.get(name, name)
        compared = other != name and other in groups
        return Score(
            metric, interval(own, metric), paired(counts[other, metric.name], own, metric) if compared else None
        )

    return {name: {metric.name: one(name, metric) for metric in metrics} for name in groups}


def _counts(metric: Metric, record: Answer) -> Counts:
    if metric.name == "judge":
        return np.array(record["judged"], np.float64)  # None becomes NaN: could not be scored
    assert record["reference"] is not None  # by_task leaves out answers without
    return metric.counts(record["reference"], record["answer"])


def retention(records: Sequence[Answer]) -> list[float]:
    """Audio tokens left after each site of one condition, as shares of what the encoder made."""
    whole = sum(record["audio_tokens"] for record in records)
    left = zip(*(record["kept"] for record in records), strict=True)
    return [sum(kept) / whole for kept in left]


STEPS = 10_000  # shares between 0 and 1 that are looked at


def as_shares(records: Sequence[Answer]) -> tuple[Site, ...]:
    """Sites at the layers of one condition: the largest shares that leave no more tokens in all than it left there.

    Each recording is one run of tokens.
    """
    runs = [record["audio_tokens"] for record in records]
    found: list[Site] = []
    for place, layer in enumerate(records[0]["layers"]):
        share = _largest_share(runs, sum(record["kept"][place] for record in records))
        found.append(Site(layer, keep=share))
        runs = [rows_left(run, share) for run in runs]
    return tuple(found)


def _largest_share(runs: Sequence[int], tokens: int) -> float:
    """That leaves at most so many tokens of all the runs; the smallest looked at, if none does."""
    steps = bisect_right(
        range(1, STEPS + 1), tokens, key=lambda step: sum(rows_left(run, step / STEPS) for run in runs)
    )
    return max(1, steps) / STEPS


def relative_flops(subject: Subject, records: Sequence[Answer]) -> float:
    """Decoder prefill of one condition over that of the unpooled model, all recordings together."""
    pooled = whole = 0.0
    for record in records:
        text, audio = record["text_tokens"], record["audio_tokens"]
        after = dict(zip(record["layers"], record["kept"], strict=True))
        pooled += subject.prefill_flops(text, audio, after).total
        whole += subject.prefill_flops(text, audio).total
    return pooled / whole


def summarise(lslm: Lslm, run: Finished[Answer], judge: Metric | None = None) -> ConditionsSummary:
    """Everything a run of conditions found and what it was found with."""
    scores = {task: score(of, judge=judge) for task, of in by_task(run.rows).items()}
    metrics = {task: [s.metric for s in next(iter(found.values())).values()] for task, found in scores.items()}
    return {
        "command": run.settings["command"],
        "config": run.settings,
        "provenance": run.provenance,
        "unusable": list(run.unusable),
        "metrics": {task: [metric_json(metric) for metric in found] for task, found in metrics.items()},
        "conditions": [
            _condition(lslm, name, of, {task: found[name] for task, found in scores.items()})
            for name, of in by_condition(run.rows).items()
        ],
    }


def _condition(
    lslm: Lslm, name: str, answers: Sequence[Answer], scores: Mapping[str, Mapping[str, Score]]
) -> ConditionResult:
    return {
        "name": name,
        **answers[0]["facts"],  # type: ignore[typeddict-item]  # the keys that its experiment adds
        "layers": answers[0]["layers"],
        "utterances": len(answers),
        "audio_tokens": sum(answer["audio_tokens"] for answer in answers),
        "retention": [round(share, 6) for share in retention(answers)],
        **_heard(answers),
        "relative_flops": round(relative_flops(lslm, answers), 6),
        "scores": {task: {metric: s.json() for metric, s in found.items()} for task, found in scores.items()},
    }


def _heard(answers: Sequence[Answer]) -> dict[str, Any]:
    """Of an encoder-decoder model: tokens of the recordings themselves, and the share that is left of those."""
    if "heard" not in answers[0]:
        return {}
    tokens = sum(answer["heard"][0] for answer in answers)
    left = sum(answer["heard"][-1] for answer in answers)
    return {"heard_tokens": tokens, "heard_retention": round(left / tokens, 6)}


def metric_json(metric: Metric) -> MetricResult:
    return {
        "name": metric.name,
        "title": metric.title,
        "better": metric.better,
        "percent": metric.percent,
        "signature": metric.signature,
    }


def rounded(found: Interval) -> CountedEstimate:
    """As it goes into ``summary.json``."""
    bounds = [None if bound is None else round(bound, 6) for bound in (found.low, found.high)]
    return {"value": round(found.value, 6), "interval_95": bounds, "utterances": found.utterances}
