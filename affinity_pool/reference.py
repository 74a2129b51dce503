"""Affinity Pooling as the paper states it (section 4): one loop, one open group. And pooling to a promised count.

This file is the judge of every kernel. It is written to be read, runs on any device and dtype the op accepts, and costs
a host round trip per comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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


def rows_left(rows: int, keep: float) -> int:
    """Rows that a share leaves of a run: the formula by which everyone counts, before there is any data.

    Args:
        rows: of the run, 0 to 2^31 - 1; inside torch.compile and torch.export a size that is not known yet.
        keep: share in (0, 1].

    Returns:
        ``keep * rows`` rounded up, at least 1 and at most ``rows``; 0 of 0. What lies within 1e-9 above a whole number
        is that number, so that up to ten million rows ``rows_left(n, m / n)`` is ``m``.

    Raises:
        TypeError, ValueError: ``rows`` or ``keep`` has the wrong type or range.

    Example:
        >>> from affinity_pool import rows_left
        >>> rows_left(750, 0.5), rows_left(3, 0.5), rows_left(3, 0.01), rows_left(0, 0.5)
        (375, 2, 1, 0)
    """
    checks.check_share(keep)
    if isinstance(rows, bool) or not isinstance(rows, checks.INTS):
        raise TypeError(f"rows must be an int, got {type(rows).__name__} {rows!r}")
    if not isinstance(rows, torch.SymInt) and not torch.compiler.is_compiling() and not 0 <= rows < 2**31:
        raise ValueError(f"rows must be in 0..2^31 - 1, got {rows}")
    left: int = torch.sym_min(rows, torch.sym_max(math.ceil(rows * keep - 1e-9), 1))
    return left


def link(a: Tensor, b: Tensor) -> float:
    """What holds two neighbours together: their cosine, in float64 from float32 sums, as in :func:`match`."""
    aa, bb = dot(a, a), dot(b, b)
    if not (is_finite(aa) and is_finite(bb)):
        return -math.inf
    return dot(a, b) / math.sqrt(max(aa, EPS**2) * max(bb, EPS**2))


def groups_to(x: Tensor, mergeable: Tensor | None, keep: float | int) -> list[list[int]]:
    """Reduce each run of one sequence's rows to a share, or all of them to a number; return each group's row indices.

    Of a run's rows but the first, those with the weakest links to the row before begin groups; of equal ones the
    earliest. A row that is not mergeable is a run of its own.
    """
    result: list[list[int]] = []
    start = 0
    while start < x.shape[0]:
        end = start + 1
        while end < x.shape[0] and (mergeable is None or bool(mergeable[start] and mergeable[end])):
            end += 1
        left = keep if isinstance(keep, int) else rows_left(end - start, keep)
        links = {t: link(x[t - 1], x[t]) for t in range(start + 1, end)}
        weakest_first = sorted(links, key=links.__getitem__)  # stable
        begins = [start, *sorted(weakest_first[: left - 1]), end]
        result += [list(range(*group)) for group in pairwise(begins)]
        start = end
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
    """The paper's loop with the signature of :func:`affinity_pool.pool`; see there for shapes, dtypes and semantics.

    Example:
        >>> import torch
        >>> from affinity_pool import reference
        >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> reference.pool(x, threshold=0.8).counts.tolist()
        [2, 1]
    """
    checks.check_pool(x, cu_seqlens, mergeable, threshold, window)
    return packed(x, cu_seqlens, mergeable, lambda rows, mask, _: groups(rows, mask, threshold, window))


def pool_padded(
    x: Tensor,
    lengths: Tensor | None = None,
    *,
    mergeable: Tensor | None = None,
    threshold: float = 0.8,
    window: int = 3,
    left_padded: bool = False,
) -> PooledPadded:
    """The paper's loop on each row of a padded batch; see :func:`affinity_pool.pool_padded`.

    Example:
        >>> import torch
        >>> from affinity_pool import reference
        >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> reference.pool_padded(x[None], threshold=0.8).counts.tolist()
        [[2, 1, 0]]
    """
    checks.check_pool_padded(x, lengths, mergeable, threshold, window)
    return padded(x, lengths, mergeable, lambda rows, mask, _: groups(rows, mask, threshold, window), left_padded)


def pool_to(
    x: Tensor, keep: checks.Keep, cu_seqlens: Tensor | None = None, *, mergeable: Tensor | None = None
) -> Pooled:
    """The rule with the signature of :func:`affinity_pool.pool_to`; see there for shapes, dtypes and semantics.

    Example:
        >>> import torch
        >>> from affinity_pool import reference
        >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> reference.pool_to(x, 2).counts.tolist()
        [2, 1]
    """
    checks.check_pool_to(x, keep, cu_seqlens, mergeable)
    return packed(x, cu_seqlens, mergeable, grouping_to(keep))


def pool_padded_to(
    x: Tensor,
    keep: checks.Keep,
    lengths: Tensor | None = None,
    *,
    mergeable: Tensor | None = None,
    left_padded: bool = False,
) -> PooledPadded:
    """The same on each row of a padded batch; see :func:`affinity_pool.pool_padded_to`.

    Example:
        >>> import torch
        >>> from affinity_pool import reference
        >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> reference.pool_padded_to(x[None], 2).counts.tolist()
        [[2, 1, 0]]
    """
    checks.check_pool_padded_to(x, keep, lengths, mergeable)
    return padded(x, lengths, mergeable, grouping_to(keep), left_padded)


Grouping = Callable[[Tensor, Tensor | None, int], list[list[int]]]
"""Rows of a sequence, their flags and the sequence's number to the row indices of each group."""


def grouping_to(keep: checks.Keep) -> Grouping:
    if isinstance(keep, float):
        return lambda rows, mask, _: groups_to(rows, mask, keep)
    counts = keep.tolist() if isinstance(keep, Tensor) else keep

    def grouping(rows: Tensor, _: Tensor | None, sequence: int) -> list[list[int]]:
        count = counts if isinstance(counts, int) else counts[sequence]
        checks.check_promise(count, rows.shape[0], sequence)
        return groups_to(rows, None, count)

    return grouping


def of_sequence(grouping: Grouping, sequence: int) -> Grouping:
    """The same for a call with that sequence alone."""
    return lambda rows, mask, _: grouping(rows, mask, sequence)


def packed(x: Tensor, cu_seqlens: Tensor | None, mergeable: Tensor | None, grouping: Grouping) -> Pooled:
    bounds = [0, x.shape[0]] if cu_seqlens is None else cu_seqlens.tolist()
    checks.check_cu_seqlens(bounds, x.shape[0])
    values: list[Tensor] = []
    counts: list[int] = []
    ids: list[int] = []
    cu_out = [0]
    for b, (start, end) in enumerate(pairwise(bounds)):
        rows = x[start:end]
        for group in grouping(rows, None if mergeable is None else mergeable[start:end], b):
            ids += [len(counts)] * len(group)
            counts.append(len(group))
            values.append(mean(rows[group]))
        cu_out.append(len(counts))

    def ints(data: list[int]) -> Tensor:
        return torch.tensor(data, dtype=torch.int32, device=x.device)

    return Pooled(torch.stack(values) if values else x.new_empty(0, x.shape[1]), ints(cu_out), ints(ids), ints(counts))


def padded(
    x: Tensor, lengths: Tensor | None, mergeable: Tensor | None, grouping: Grouping, left_padded: bool
) -> PooledPadded:
    batch, width, _ = x.shape
    valid_rows = [width] * batch if lengths is None else lengths.tolist()
    checks.check_lengths(valid_rows, width)
    values = torch.zeros_like(x, memory_format=torch.contiguous_format)
    segment_ids = torch.full((batch, width), -1, dtype=torch.int32, device=x.device)
    counts = torch.zeros((batch, width), dtype=torch.int32, device=x.device)
    kept = []
    for b, n in enumerate(valid_rows):
        valid = slice(width - n, width) if left_padded else slice(0, n)
        mask = None if mergeable is None else mergeable[b, valid]
        out = packed(x[b, valid], None, mask, of_sequence(grouping, b))
        m = out.counts.shape[0]
        first = width - m if left_padded else 0
        values[b, first : first + m] = out.values
        counts[b, first : first + m] = out.counts
        segment_ids[b, valid] = out.segment_ids + first
        kept.append(m)
    return PooledPadded(values, torch.tensor(kept, dtype=torch.int32, device=x.device), segment_ids, counts)
