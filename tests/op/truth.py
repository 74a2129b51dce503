"""The judge: a result of ``pool`` held against the contract in float64, knowing nothing of how it was computed.

Each decision is judged given the groups before it, so one disputed similarity does not condemn what follows.
"""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import torch
from torch import Tensor

from affinity_pool import Pooled

EPS = 1e-8
FLOAT32_MAX = torch.finfo(torch.float32).max


def rounding(dim: int) -> float:
    """How far a cosine from float32 sums may be from the true one: 4e-6 at D = 4096, less below."""
    return 6e-8 * math.sqrt(dim) + 2e-7


def assert_obeys_contract(
    x: Tensor,
    result: Pooled,
    *,
    threshold: float,
    window: int,
    cu_seqlens: Tensor | None = None,
    mergeable: Tensor | None = None,
) -> None:
    """Assert every sentence of the contract that one call can show."""
    bounds = [0, x.shape[0]] if cu_seqlens is None else cu_seqlens.tolist()
    groups = assert_shape(x, bounds, result)
    assert_decisions(x, bounds, result.segment_ids.tolist(), mergeable, threshold, window)
    assert_means(x, groups, result.values)


def assert_shape(x: Tensor, bounds: list[int], result: Pooled) -> list[tuple[int, int]]:
    """Dtypes, shapes and segments are those of a result on ``x``. Returns the segments."""
    n, dim = x.shape
    values, cu_out, ids, counts = result
    assert (values.dtype, cu_out.dtype, ids.dtype, counts.dtype) == (x.dtype, torch.int32, torch.int32, torch.int32)
    assert (cu_out.shape, ids.shape) == ((len(bounds),), (n,))
    assert values.shape == (counts.shape[0], dim)
    return assert_segments(bounds, cu_out.tolist(), ids.tolist(), counts.tolist())


def assert_segments(bounds: list[int], cu_out: list[int], ids: list[int], counts: list[int]) -> list[tuple[int, int]]:
    """Segments partition the input in order, none spans two sequences; counts and cu_seqlens agree. Returns them."""
    starts = [t for t in range(len(ids)) if t == 0 or ids[t] != ids[t - 1]]
    groups = list(pairwise([*starts, len(ids)]))
    assert [ids[start] for start in starts] == list(range(len(starts))), "ids count groups from 0 without a gap"
    assert counts == [end - start for start, end in groups]
    assert sum(counts) == len(ids)
    assert cu_out == [sum(start < bound for start in starts) for bound in bounds]
    assert all(bound in starts or bound == len(ids) for bound in bounds), "no group spans two sequences"
    return groups


def cosines(x: Tensor, window: int) -> Tensor:
    """``[N, window + 1]`` float64, rows t and t - lag: dot over floored norms, NaN where either matches nothing."""
    x = x.double()
    squared = x.square().sum(-1)
    norm = squared.sqrt().clamp(min=EPS).masked_fill(~(squared <= FLOAT32_MAX), math.nan)
    out = x.new_full((x.shape[0], window + 1), math.nan)
    for lag in range(1, min(window, x.shape[0] - 1) + 1):
        dots = (x[lag:] * x[:-lag]).sum(-1)
        out[lag:, lag] = dots / norm[lag:] / norm[:-lag]
    return out


def assert_decisions(
    x: Tensor, bounds: list[int], ids: list[int], mergeable: Tensor | None, threshold: float, window: int
) -> None:
    """A row is in the group before it iff one of the group's latest rows matches, wherever float64 is sure of that."""
    cosine, slack = cosines(x, window).tolist(), rounding(x.shape[1])
    may = [True] * len(ids) if mergeable is None else mergeable.tolist()

    def verdict(t: int, s: int) -> tuple[bool, bool]:
        """(surely, possibly) match"""
        c = cosine[t][t - s]
        if not (may[t] and may[s]) or math.isnan(c) or threshold > 1:
            return False, False
        if threshold <= -1:
            return True, True
        return c >= threshold + slack, c >= threshold - slack

    for start, end in pairwise(bounds):
        opened = start
        for t in range(start, end):
            verdicts = [verdict(t, s) for s in range(max(opened, t - window), t)]
            joined = t > start and ids[t] == ids[t - 1]
            where = f"row {t - start} of the sequence at {start}, open group from {opened - start}"
            assert joined or not any(sure for sure, _ in verdicts), f"{where}: should join"
            assert not joined or any(possible for _, possible in verdicts), f"{where}: should open a group"
            if not joined:
                opened = t


def assert_means(x: Tensor, groups: list[tuple[int, int]], values: Tensor) -> None:
    """A mean is a float32 mean rounded once; a group of one is a copy (test_means has bits and torch's own error)."""
    eps, half_least = torch.finfo(x.dtype).eps / 2, torch.finfo(x.dtype).smallest_normal * torch.finfo(x.dtype).eps / 2
    for (start, end), value in zip(groups, values.double(), strict=True):
        rows = x[start:end].double()
        if end - start == 1:
            assert torch.equal(value.nan_to_num(0.5, 2e38, -2e38), rows[0].nan_to_num(0.5, 2e38, -2e38))
            continue
        truth = rows.mean(0)
        odd = ~truth.isfinite()  # a promised number may force such a row into a group
        assert torch.equal(value[odd].nan_to_num(0.5), truth[odd].nan_to_num(0.5))
        rows, value, truth = rows[:, ~odd], value[~odd], truth[~odd]
        summing = (end - start + 2) * 2.0**-24 * rows.abs().mean(0)
        error = (value - truth).abs()
        assert (error <= summing + eps * (truth.abs() + summing) + half_least).all(), (start, end, error)


def assert_keeps_promise(
    x: Tensor,
    result: Pooled,
    *,
    keep: float | list[int],
    cu_seqlens: Tensor | None = None,
    mergeable: Tensor | None = None,
) -> None:
    """Assert every sentence of the contract of ``pool_to`` that one call can show. ``keep``: a share, or of each."""
    bounds = [0, x.shape[0]] if cu_seqlens is None else cu_seqlens.tolist()
    groups = assert_shape(x, bounds, result)
    begins = {start for start, _ in groups}
    links, slack = cosines(x, 1)[:, 1].nan_to_num(-math.inf).tolist(), rounding(x.shape[1])
    for sequence, start, end in runs(bounds, mergeable):
        promised = keep[sequence] if isinstance(keep, list) else promised_of_share(end - start, keep)
        assert start in begins
        assert len(begins.intersection(range(start, end))) == promised, "exactly as many as promised"
        strongest = max((links[t] for t in range(start + 1, end) if t in begins), default=-math.inf)
        weakest = min((links[t] for t in range(start + 1, end) if t not in begins), default=math.inf)
        assert strongest <= weakest + 2 * slack, "groups begin at the weakest links"
    assert_means(x, groups, result.values)


def runs(bounds: list[int], mergeable: Tensor | None) -> list[tuple[int, int, int]]:
    """``(sequence, start, end)`` of the stretches that ``mergeable`` cuts sequences into; what is not is its own."""
    may = [True] * bounds[-1] if mergeable is None else mergeable.tolist()
    found = []
    for sequence, (start, end) in enumerate(pairwise(bounds)):
        cuts = [t for t in range(start + 1, end) if not (may[t] and may[t - 1])]
        found += [(sequence, a, b) for a, b in pairwise([start, *cuts, end]) if b > a]
    return found


def promised_of_share(rows: int, share: float) -> int:
    """The published formula, in exact arithmetic."""
    return max(1, min(rows, math.ceil(Fraction(rows) * Fraction(share) - Fraction(1, 10**9))))
