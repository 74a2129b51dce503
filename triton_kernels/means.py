"""Launch 3: the mean of every group, and its count.

Mapping. A program has BLOCK features of one row of ``values``; the rows of x that it is the mean of lie between two
``starts``, and eight of them are on their way at a time. Where there is no group a program writes zeros to a padded
batch, and to packed sequences if M was promised, which holds unless their bounds make no sense. If not it ends at once:
the grid is made before anyone knows M.

Traffic. N rows in and M out, each once, and a few bytes a group.

Determinism. A running float32 sum over the rows in order, times the float32 reciprocal of their number, rounded once,
which is also how the C++ kernels do it. A group of one row is moved, never converted: NaNs keep their payload.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .formats import rounded, widened

BLOCK = tl.constexpr(1024)
ROWS_IN_FLIGHT = tl.constexpr(8)
NUM_WARPS = 4


@triton.jit
def write_bounds(
    cu_seqlens: tl.tensor,
    segment_ids: tl.tensor,
    cu_seqlens_out: tl.tensor,
    rows: tl.tensor,
    bounds: tl.tensor,
    found: tl.tensor,
) -> None:
    """``cu_seqlens_out``, the groups before each sequence: the id of its first row, or all if it begins at the end."""
    if cu_seqlens is None:
        if tl.program_id(0) == 0:
            tl.store(cu_seqlens_out, 0)
            tl.store(cu_seqlens_out + 1, found)
    else:
        b = tl.program_id(0).to(tl.int64) * BLOCK
        while b < bounds:
            entry = b + tl.arange(0, BLOCK)
            at = tl.minimum(tl.maximum(tl.load(cu_seqlens + entry, entry < bounds, other=0), 0), rows)
            before = tl.load(segment_ids + at, at < rows, other=found)
            tl.store(cu_seqlens_out + entry, before, entry < bounds)
            b += tl.num_programs(0).to(tl.int64) * BLOCK


@triton.jit(do_not_specialize=["starts", "groups", "segment_ids", "cu_seqlens", "rows", "places", "bounds"])
def means(
    x: tl.tensor,
    starts: tl.tensor,
    groups: tl.tensor,
    segment_ids: tl.tensor,
    cu_seqlens: tl.tensor,
    values: tl.tensor,
    counts: tl.tensor,
    cu_seqlens_out: tl.tensor,
    rows: tl.int32,
    places: tl.int32,
    bounds: tl.int64,
    dim: tl.int32,
    sequence_stride: tl.int64,
    row_stride: tl.int64,
    left: tl.constexpr,
    promised: tl.constexpr,
) -> None:
    blocks = tl.cdiv(dim, BLOCK)
    place = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    sequence = (place // places).to(tl.int64)
    group = place % places
    found = tl.load(groups + sequence)
    if left:
        group -= places - found
    exists = (group >= 0) & (group < found)
    if cu_seqlens_out is not None:
        write_bounds(cu_seqlens, segment_ids, cu_seqlens_out, rows, bounds, found)
        if (not promised) & (group >= found):
            return

    starts += sequence * (rows + 1) + group
    begin = tl.load(starts, exists, other=0)
    end = tl.load(starts + 1, exists, other=0)
    count = end - begin
    if block == 0:
        tl.store(counts + place, count)

    column = block * BLOCK + tl.arange(0, BLOCK)
    row = x + sequence * sequence_stride + begin.to(tl.int64) * row_stride
    out = values + place.to(tl.int64) * dim + column
    if count == 1:
        tl.store(out, tl.load(row + column, column < dim), column < dim)
    else:
        total = tl.zeros((BLOCK,), tl.float32)
        while begin < end:
            for i in tl.static_range(ROWS_IN_FLIGHT):
                width = tl.where(begin + i < end, dim, 0)
                total += widened(tl.load(row + i * row_stride + column, column < width, other=0))
            row += ROWS_IN_FLIGHT * row_stride
            begin += ROWS_IN_FLIGHT
        scale = tl.div_rn(1.0, tl.maximum(count, 1).to(tl.float32))
        tl.store(out, rounded(total * scale, values.dtype.element_ty), column < dim)
