"""Launch 1: k(t), the distance from row t to the nearest row before it that matches, a byte a row.

Mapping. A program has ROWS rows and compares them with those up to ``lags`` before, every lag in one walk over the
features: a chunk of BLOCK features is loaded as it stands, and once more for each lag from so many rows earlier, where
neighbours have left it in L1. On an NVIDIA GPU a warp has one row, and a thread 16 bytes of each load. Windows beyond
MAX_LAGS take passes of so many lags, over the rows that have no match yet, and end when there are none. Rows that may
not merge are not read.

Traffic. N rows from DRAM once, and (ROWS + lags) / ROWS times from L2: 1.4 at window 3. There a feature takes 4
widenings and 7 fused multiply-adds, 13 instructions in all, in the time of 17 that an H100 needs to fetch it from DRAM.
The norm of the earlier row is one of those sums rather than a message from the program that has it.

Determinism. A sum is a chain of fused multiply-adds for each of BLOCK columns, then a fixed tree over the columns. Dots
and norms take the same path, so bit-identical rows match at threshold 1; and no bit depends on the row's place in the
tile, the lag, the pass, the alignment of x or the number of warps.

Packed sequences need little care. Where k(t) reaches back beyond the start of a sequence, it exceeds the length of any
group that t could join; only the first row of a sequence has to be told that it matches nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .formats import widened
from .sequences import valid_rows

ROWS = tl.constexpr(8)
LEVELS = tl.constexpr(8)
BLOCK = tl.constexpr(2**8)
MAX_LAGS = 4  # nine sums of eight floats a thread: with those of a fifth lag, they no longer fit twice on an SM
NUM_WARPS = 8
NO_MATCH = tl.constexpr(255)


def lags_and_chunks(window: int, itemsize: int) -> tuple[int, int]:
    """Lags of a pass, and chunks that are loaded before the first is used: eight loads of 16 bytes a thread in all."""
    lags = min(window, MAX_LAGS)
    return lags, max(1, 16 // itemsize // (lags + 1))


@triton.jit
def row_sums(values: tl.tensor) -> tl.tensor:
    """``[ROWS, BLOCK]`` to ``[ROWS]``, by adding neighbours and neighbours of neighbours.

    A plain tl.sum adds in an order of the layout's choice, and the layout follows the alignment of x. Of two values
    there is but one sum.
    """
    for level in tl.static_range(1, LEVELS + 1):
        values = tl.sum(tl.reshape(values, (ROWS, BLOCK >> level, 2)), 2)
    return tl.reshape(values, (ROWS,))


@triton.jit
def sums(
    row: tl.tensor, row_stride: tl.tensor, dim: tl.tensor, searching: tl.tensor, wanted: tl.tuple, nearer: tl.tensor,
    chunks: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """Squared norms of rows, then by lag their dots with earlier rows, and the squared norms of those.

    ``row`` points to the rows, of which those that are ``searching`` are read. Lag i is ``nearer + i + 1`` rows, and
    earlier rows are read where they are ``wanted[i]``.
    """
    lags: tl.constexpr = len(wanted)
    zero = tl.zeros((ROWS, BLOCK), tl.float32)
    own_norm, dots, norms = zero, (zero,) * lags, (zero,) * lags
    begin = 0
    while begin < dim:
        for _ in tl.static_range(chunks):
            column = (begin + tl.arange(0, BLOCK))[None, :]
            a = widened(tl.load(row + column, searching[:, None] & (column < dim), other=0))
            own_norm = tl.fma(a, a, own_norm)
            for i in tl.static_range(lags):
                b = row - (nearer + i + 1) * row_stride + column
                b = widened(tl.load(b, wanted[i][:, None] & (column < dim), other=0))
                dots += (tl.fma(a, b, dots[i]),)
                norms += (tl.fma(b, b, norms[i]),)
            dots, norms = dots[lags:], norms[lags:]
            begin += BLOCK

    total = (row_sums(own_norm),)  # type: tuple[tl.tensor, ...]
    for i in tl.static_range(lags):
        total += (row_sums(dots[i]), row_sums(norms[i]))
    return total


@triton.jit
def both_finite(norm_a: tl.tensor, norm_b: tl.tensor) -> tl.tensor:
    return (norm_a < float("inf")) & (norm_b < float("inf"))


@triton.jit
def product(norm_a: tl.tensor, norm_b: tl.tensor) -> tl.tensor:
    """Of the norms of two rows, in float64, from their squares."""
    least = tl.full((ROWS,), 1e-16, tl.float64)
    return tl.sqrt(tl.maximum(norm_a.to(tl.float64), least) * tl.maximum(norm_b.to(tl.float64), least))


@triton.jit
def matches(dot: tl.tensor, norm_a: tl.tensor, norm_b: tl.tensor, threshold: tl.tensor) -> tl.tensor:
    """cos(a, b) >= threshold, from float32 sums (the norms squared) in float64; csrc/algebra.h says why so."""
    similar = (dot.to(tl.float64) >= threshold * product(norm_a, norm_b)) | (threshold <= -1)
    return both_finite(norm_a, norm_b) & similar & (threshold <= 1)


@triton.jit
def sequence_of(t: tl.tensor, cu_seqlens: tl.tensor, bounds: tl.tensor) -> tl.tuple:
    """The last entry of cu_seqlens not above t, -1 if there is none, and whether it is t: the sequence, and its start.

    By bisection. Entries out of order mislead it, not out of bounds.
    """
    low = tl.zeros((ROWS,), tl.int64)  # low..high holds the place of the first entry above t
    high = low + bounds
    width = bounds
    while width > 0:
        middle = (low + high) // 2
        above = tl.load(cu_seqlens + middle, low < high, other=2**31 - 1) > t
        low = tl.where(above, low, middle + 1)
        high = tl.where(above, middle, high)
        width //= 2
    return low - 1, tl.load(cu_seqlens + low - 1, low > 0, other=-1) == t


@triton.jit(do_not_specialize=["mergeable", "cu_seqlens", "lengths", "nearest", "rows", "bounds", "window"])
def nearest_match(
    x: tl.tensor,
    mergeable: tl.tensor,
    cu_seqlens: tl.tensor,
    lengths: tl.tensor,
    nearest: tl.tensor,
    rows: tl.int32,
    bounds: tl.int64,
    dim: tl.int32,
    sequence_stride: tl.int64,
    row_stride: tl.int64,
    threshold: tl.float64,
    window: tl.int32,
    left: tl.constexpr,
    lags: tl.constexpr,
    chunks: tl.constexpr,
) -> None:
    tiles = tl.cdiv(rows, ROWS)
    sequence = tl.program_id(0) // tiles
    t = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    first, end = valid_rows(lengths, sequence, rows, left)
    valid = (t >= first) & (t < end)
    x += sequence.to(tl.int64) * sequence_stride
    row = x + (t.to(tl.int64) * row_stride)[:, None]
    nearest += sequence.to(tl.int64) * rows
    searching = valid
    if mergeable is not None:
        mergeable += sequence.to(tl.int64) * rows
        searching &= tl.load(mergeable + t, valid, other=0) != 0

    best = tl.full((ROWS,), NO_MATCH, tl.int32)
    nearer = 0  # lags of the passes before this one
    while (nearer < window) & (tl.max(searching.to(tl.int32), 0) > 0):
        wanted = ()  # type: tuple[tl.tensor, ...]
        for lag in tl.static_range(1, lags + 1):
            earlier = t - nearer - lag
            pair = searching & (earlier >= tl.maximum(first, t - window))
            if mergeable is not None:
                pair &= tl.load(mergeable + earlier, pair, other=0) != 0
            wanted += (pair,)

        total = sums(row, row_stride, dim, searching, wanted, nearer, chunks)
        for i in tl.static_range(lags):
            found = wanted[i] & matches(total[2 * i + 1], total[0], total[2 * i + 2], threshold)
            best = tl.minimum(best, tl.where(found, nearer + i + 1, NO_MATCH))
        searching &= best == NO_MATCH
        nearer += lags

    if cu_seqlens is not None:
        _, starts = sequence_of(t, cu_seqlens, bounds)
        best = tl.where(starts, NO_MATCH, best)
    tl.store(nearest + t, best.to(tl.uint8), valid)
