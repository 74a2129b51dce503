"""How far a metric would move on other utterances like these: percentile bootstrap over utterances.

A sample draws as many utterances as there are, with replacement, sums their counts and takes the metric's value; the
interval holds the middle ``confidence`` of the samples' values. For two systems the same draws serve both, which takes
out what makes utterances easy or hard for either.

Utterances with NaN counts, in either system, could not be scored and are left out. Of a single utterance there is a
value but nothing to say how far to trust it: its bounds are None.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from .metric import Counts, Metric


@dataclass(frozen=True)
class Interval:
    """A value and the bounds of its interval."""

    value: float
    low: float | None
    high: float | None
    utterances: int
    """How many could be scored."""

    def holds(self, value: float) -> bool:
        """Whether ``value`` cannot be ruled out: without bounds, none can."""
        return self.low is None or self.high is None or self.low <= value <= self.high


def interval(
    counts: Counts, metric: Metric, *, resamples: int = 2000, seed: int = 0, confidence: float = 0.95
) -> Interval:
    """The value of ``counts`` [N, k].

    Raises:
        InputError: there is no utterance that could be scored.
    """
    return _bootstrap(counts, metric.value, metric, resamples, seed, confidence)


def paired(
    a: Counts, b: Counts, metric: Metric, *, resamples: int = 2000, seed: int = 0, confidence: float = 0.95
) -> Interval:
    """The value of ``b`` minus that of ``a``, both [N, k], of the same utterances in the same order.

    Raises:
        InputError: there is no utterance that could be scored in both.
    """
    if a.shape != b.shape:
        raise ValueError(f"a and b must be counts of the same recordings, got shapes {a.shape} and {b.shape}")

    def difference(sums: Counts) -> Counts:
        of_a, of_b = np.split(sums, 2, axis=-1)
        return np.asarray(metric.value(of_b) - metric.value(of_a))

    return _bootstrap(np.hstack([a, b]), difference, metric, resamples, seed, confidence)


def _bootstrap(
    counts: Counts, value: Callable[[Counts], Counts], metric: Metric, resamples: int, seed: int, confidence: float
) -> Interval:
    scored = counts[np.isfinite(counts).all(1)]
    total = len(scored)
    if not total:
        raise InputError(f"{metric.title} needs at least one recording that could be scored, got none of {len(counts)}")
    # Drawing among distinct rows is the same as among utterances, and in no order but the rows' own.
    rows, occurrences = np.unique(scored, axis=0, return_counts=True)
    estimate = float(value(occurrences @ rows))
    if total < 2:
        return Interval(estimate, None, None, total)
    drawn = np.random.default_rng(seed).multinomial(total, occurrences / total, resamples).astype(np.float64)
    tail = (1 - confidence) / 2
    low, high = np.quantile(value(drawn @ rows), [tail, 1 - tail])
    return Interval(estimate, float(low), float(high), total)
