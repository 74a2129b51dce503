"""Launch 1 if a number of rows is promised: what holds each row to the one before it, a word a row.

A link is a cosine, in float64 from the float32 sums of :mod:`.nearest_match` at window 1, so that the groups are those
of ``pool`` at window 1 and some threshold. It is stored as the int64 that compares as the float64 does. Integers can be
halved, which the selection does, have one zero, and leave room below minus infinity: there a row that begins a run is
told, and with it how many rows are promised of the run. So the next launch needs neither bounds nor lengths nor flags.

Mapping, traffic, determinism. As :mod:`.nearest_match` has them, with one lag: N rows from DRAM once and 9 / 8 times
from L2, and 8 N bytes out. A link takes one division in float64 where a match takes a product. It costs the time of
reading x.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .nearest_match import ROWS, both_finite, product, sequence_of, sums
from .sequences import valid_rows

BEGINS = tl.constexpr(-(2**63))  # plus the number of rows promised of the run, or 0: a share
WEAKEST = tl.constexpr(-(2**63) + 2**52 - 1)  # minus infinity


@triton.jit
def link(dot: tl.tensor, norm_a: tl.tensor, norm_b: tl.tensor) -> tl.tensor:
    """Dot and squared norms of two rows to an integer that orders links, those not finite first."""
    cosine = dot.to(tl.float64) / product(norm_a, norm_b) + 0.0  # there is one zero
    bits = cosine.to(tl.int64, bitcast=True)
    ordered = bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF)
    return tl.where(both_finite(norm_a, norm_b) & (cosine == cosine), ordered, WEAKEST)


@triton.jit(do_not_specialize=["mergeable", "cu_seqlens", "lengths", "each", "out", "rows", "bounds", "promise"])
def links(
    x: tl.tensor,
    mergeable: tl.tensor,
    cu_seqlens: tl.tensor,
    lengths: tl.tensor,
    each: tl.tensor,
    out: tl.tensor,
    rows: tl.int32,
    bounds: tl.int64,
    dim: tl.int32,
    sequence_stride: tl.int64,
    row_stride: tl.int64,
    promise: tl.int32,
    left: tl.constexpr,
    chunks: tl.constexpr,
) -> None:
    """Of each sequence ``each`` promises a number of rows, or ``promise`` of all alike; 0 is a share."""
    tiles = tl.cdiv(rows, ROWS)
    sequence = tl.program_id(0) // tiles
    t = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    first, end = valid_rows(lengths, sequence, rows, left)
    linked = (t > first) & (t < end)
    if mergeable is not None:
        mergeable += sequence.to(tl.int64) * rows + t
        linked &= tl.load(mergeable, linked, other=0) != 0
        linked &= tl.load(mergeable - 1, linked, other=0) != 0

    x += sequence.to(tl.int64) * sequence_stride
    row = x + (t.to(tl.int64) * row_stride)[:, None]
    norm, dot, norm_before = sums(row, row_stride, dim, linked, (linked,), 0, chunks)

    number = tl.zeros((ROWS,), tl.int64) + sequence
    if cu_seqlens is not None:
        entry, starts = sequence_of(t, cu_seqlens, bounds)
        linked &= ~starts
        number = tl.minimum(tl.maximum(entry, 0), bounds - 2)
    if each is not None:
        promise = tl.maximum(tl.load(each + number), 1)
    out += sequence.to(tl.int64) * rows + t
    tl.store(out, tl.where(linked, link(dot, norm, norm_before), promise.to(tl.int64) + BEGINS), t < rows)
