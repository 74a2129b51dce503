"""Affinity Pooling as the paper states it (section 4): one loop, one open group.

This file is the judge of every kernel. It is written to be read, runs on any device and dtype the op accepts, and costs
a host round trip per comparison.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from . import checks
from .results import Pooled, PooledPadded

EPS = 1e-8  # floor of a norm, as in torch.nn.functional.cosine_similarity


def dot(a: Tensor, b: Tensor) -> float:
    """Float32 dot product of two rows. The sum is torch's own: BLAS's may depend on where in memory the rows lie."""
    return (a.float() * b.float()).sum().item()


def match(a: Tensor, b: Tensor, threshold: float) -> bool:
    """Whether two rows are similar enough to share a group: cos(a, b) >= threshold.

    The three sums are float32, the decision is taken from them in float64: bit-identical rows have cosine exactly 1.
    A row whose squared norm is NaN, infinite or overflows float32 matches nothing.
    """
    aa, bb = dot(a, a), dot(b, b)
    if not (is_finite(aa) and is_finite(bb)) or threshold > 1:
        return False
    if threshold <= -1:
        return True
    return dot(a, b) >= threshold * (max(aa, EPS**2) * max(bb, EPS**2)) ** 0.5


def is_finite(squared_norm: float) -> bool:
    return squared_norm < float("inf")  # false for NaN as well


def groups(x: Tensor, mergeable: Tensor | None, threshold: float, window: int) -> list[list[int]]:
    """Scan the rows of one sequence in order and return the row indices of each group."""
    result: list[list[int]] = []
    for t in range(x.shape[0]):
        if result and any(
            (mergeable is None or bool(mergeable[t] and mergeable[s])) and match(x[t], x[s], threshold)
            for s in result[-1][-window:]
        ):
            result[-1].append(t)
        else:
            result.append([t])
    return result


def mean(rows: Tensor) -> Tensor:
    """Mean over rows [n, D], summed in float32 and rounded once; a single row is returned bit for bit."""
    return rows[0] if rows.shape[0] == 1 else (rows.float().sum(0) / rows.shape[0]).to(rows.dtype)


def pool(
    x: Tensor,
    cu_seqlens: Tensor | None = None,
    *,
    mergeable: Tensor | None = None,
    threshold: float = 0.8,
    window: int = 3,
) -> Pooled:
    """The paper's loop with the signature of :func:`affinity_pool.pool`; see there for shapes, dtypes and semantics."""
    checks.check_pool(x, cu_seqlens, mergeable, threshold, window)
    bounds = [0, x.shape[0]] if cu_seqlens is None else cu_seqlens.tolist()
    checks.check_cu_seqlens(bounds, x.shape[0])
    values: list[Tensor] = []
    counts: list[int] = []
    ids: list[int] = []
    cu_out = [0]
    for start, end in pairwise(bounds):
        rows = x[start:end]
        for group in groups(rows, None if mergeable is None else mergeable[start:end], threshold, window):
            ids += [len(counts)] * len(group)
            counts.append(len(group))
            values.append(mean(rows[group]))
        cu_out.append(len(counts))

    def ints(data: list[int]) -> Tensor:
        return torch.tensor(data, dtype=torch.int32, device=x.device)

    return Pooled(torch.stack(values) if values else x.new_empty(0, x.shape[1]), ints(cu_out), ints(ids), ints(counts))


def pool_padded(
    x: Tensor,
    lengths: Tensor | None = None,
    *,
    mergeable: Tensor | None = None,
    threshold: float = 0.8,
    window: int = 3,
    left_padded: bool = False,
) -> PooledPadded:
    """The paper's loop on each row of a padded batch; see :func:`affinity_pool.pool_padded`."""
    checks.check_pool_padded(x, lengths, mergeable, threshold, window)
    batch, width, _ = x.shape
    valid_rows = [width] * batch if lengths is None else lengths.tolist()
    checks.check_lengths(valid_rows, width)
    values = torch.zeros_like(x, memory_format=torch.contiguous_format)
    segment_ids = torch.full((batch, width), -1, dtype=torch.int32, device=x.device)
    counts = torch.zeros((batch, width), dtype=torch.int32, device=x.device)
    kept = []
    for b, n in enumerate(valid_rows):
        valid = slice(width - n, width) if left_padded else slice(0, n)
        out = pool(
            x[b, valid],
            mergeable=None if mergeable is None else mergeable[b, valid],
            threshold=threshold,
            window=window,
        )
        m = out.counts.shape[0]
        first = width - m if left_padded else 0
        values[b, first : first + m] = out.values
        counts[b, first : first + m] = out.counts
        segment_ids[b, valid] = out.segment_ids + first
        kept.append(m)
    return PooledPadded(values, torch.tensor(kept, dtype=torch.int32, device=x.device), segment_ids, counts)
