"""Launch 1: k(t), the distance to the nearest matching predecessor, one byte a row; NO_MATCH if there is none.

Mapping. A program has ROWS rows and compares them with the rows up to LAGS before, all lags in one walk over the
features: a chunk of BLOCK features is loaded as it stands, and again 1 to LAGS rows earlier, which L1 holds from its
neighbours. On an NVIDIA GPU one warp has one row and a lane 16 bytes of a chunk. Larger windows take passes of LAGS
lags, each over the rows that still lack a match, and end when there are none. Rows that may not merge are not read.

Traffic. N rows from DRAM once, and (ROWS + LAGS) / ROWS times from L2: 1.4x for the window of 3. A feature costs LAGS +
1 widenings and 2 LAGS + 1 fused multiply-adds, some 12 instructions for the window of 3 where an H100 has 17 in the
time it takes to fetch it. Recomputing a predecessor's norm is cheaper than fetching it from the program that has it.

Determinism. Every sum is one chain of fused multiply-adds for each of BLOCK columns, then a fixed tree over the columns
(:func:`row_sums`). Dots and norms take the same path, so bit-identical rows match at threshold 1, and neither the row
of the tile, the lag, the pass, the alignment of x nor the number of warps changes a bit.

Packed sequences need little care: where k(t) reaches back beyond the start of a sequence, it exceeds the length of any
group that t could join. Only the first row of a sequence has to be told that it matches nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .formats import widened
from .sequences import valid_rows

ROWS = tl.constexpr(8)
LEVELS = tl.constexpr(8)
BLOCK = tl.constexpr(2**8)
MAX_LAGS = 4  # nine accumulators of eight floats a thread; one more lag and registers spill
NUM_WARPS = 8
NO_MATCH = tl.constexpr(255)


def lags_and_chunks(window: int, itemsize: int) -> tuple[int, int]:
    """Lags of a pass; and how many chunks are loaded before the first is used: eight loads of 16 bytes a thread."""
    lags = min(window, MAX_LAGS)
    return lags, max(1, 16 // itemsize // (lags + 1))


@triton.jit
def row_sums(values: tl.tensor) -> tl.tensor:
    """``[ROWS, BLOCK]`` to ``[ROWS]`` by adding neighbours, again and again.

    tl.sum over a whole row adds in an order of the layout's choice, and the layout follows the alignment of x. Over two
    values there is no order to choose.
    """
    for level in tl.static_range(1, LEVELS + 1):
        values = tl.sum(tl.reshape(values, (ROWS, BLOCK >> level, 2)), 2)
    return tl.reshape(values, (ROWS,))


@triton.jit
def match(dot: tl.tensor, norm_a: tl.tensor, norm_b: tl.tensor, threshold: tl.tensor) -> tl.tensor:
    """cos(a, b) >= threshold, decided in float64 from float32 sums; see csrc/algebra.h."""
    finite = (norm_a < float("inf")) & (norm_b < float("inf"))
    least = tl.full((ROWS,), 1e-16, tl.float64)
    root = tl.sqrt(tl.maximum(norm_a.to(tl.float64), least) * tl.maximum(norm_b.to(tl.float64), least))
    similar = (dot.to(tl.float64) >= threshold * root) | (threshold <= -1)
    return finite & similar & (threshold <= 1)


@triton.jit
def starts_sequence(t: tl.tensor, cu_seqlens: tl.tensor, bounds: tl.tensor) -> tl.tensor:
    """Whether rows t are entries of cu_seqlens, by halving. Unsorted entries mislead it, not out of bounds."""
    low = tl.zeros((ROWS,), tl.int32)  # the first entry that is not below t lies in low..high
    high = low + bounds
    width = bounds
    while width > 0:
        middle = (low + high) // 2
        below = tl.load(cu_seqlens + middle, low < high, other=2**31 - 1) < t
        low = tl.where(below, middle + 1, low)
        high = tl.where(below, high, middle)
        width //= 2
    return tl.load(cu_seqlens + low, low < bounds, other=-1) == t


@triton.jit(do_not_specialize=["mergeable", "cu_seqlens", "lengths", "nearest", "rows", "bounds", "window"])
def nearest_match(
    x: tl.tensor,
    mergeable: tl.tensor,
    cu_seqlens: tl.tensor,
    lengths: tl.tensor,
    nearest: tl.tensor,
    rows: tl.int32,
    bounds: tl.int32,
    dim: tl.int32,
    sequence_stride: tl.int64,
    row_stride: tl.int64,
    threshold: tl.float64,
    window: tl.int32,
    LEFT: tl.constexpr,  # noqa: N803
    LAGS: tl.constexpr,  # noqa: N803
    CHUNKS: tl.constexpr,  # noqa: N803
) -> None:
    tiles = tl.cdiv(rows, ROWS)
    sequence = tl.program_id(0) // tiles
    first, end = valid_rows(lengths, sequence, rows, LEFT)
    x += sequence.to(tl.int64) * sequence_stride
    nearest += sequence.to(tl.int64) * rows
    t = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    searching = (t >= first) & (t < end)
    if mergeable is not None:
        mergeable += sequence.to(tl.int64) * rows
        searching &= tl.load(mergeable + t, searching, other=0) != 0

    best = tl.full((ROWS,), NO_MATCH, tl.int32)
    row = x + (t.to(tl.int64) * row_stride)[:, None]
    nearer = 0  # lags of the passes before
    while (nearer < window) & (tl.max(searching.to(tl.int32), 0) > 0):
        wanted = ()
        for lag in tl.static_range(1, LAGS + 1):
            earlier = t - nearer - lag
            pair = searching & (earlier >= tl.maximum(first, t - window))
            if mergeable is not None:
                pair &= tl.load(mergeable + earlier, pair, other=0) != 0
            wanted += (pair,)

        zero = tl.zeros((ROWS, BLOCK), tl.float32)
        own_norm = zero
        dots = (zero,) * LAGS
        norms = (zero,) * LAGS
        begin = 0
        while begin < dim:
            for _ in tl.static_range(CHUNKS):
                column = (begin + tl.arange(0, BLOCK))[None, :]
                inside = column < dim
                a = widened(tl.load(row + column, searching[:, None] & inside, other=0))
                own_norm = tl.fma(a, a, own_norm)
                new_dots = ()
                new_norms = ()
                for i in tl.static_range(LAGS):
                    b = row - (nearer + i + 1) * row_stride + column
                    b = widened(tl.load(b, wanted[i][:, None] & inside, other=0))
                    new_dots += (tl.fma(a, b, dots[i]),)
                    new_norms += (tl.fma(b, b, norms[i]),)
                dots = new_dots
                norms = new_norms
                begin += BLOCK

        own_norm = row_sums(own_norm)
        for i in tl.static_range(LAGS):
            found = wanted[i] & match(row_sums(dots[i]), own_norm, row_sums(norms[i]), threshold)
            best = tl.minimum(best, tl.where(found, nearer + i + 1, NO_MATCH))
        searching &= best == NO_MATCH
        nearer += LAGS

    if cu_seqlens is not None:
        best = tl.where(starts_sequence(t, cu_seqlens, bounds), NO_MATCH, best)
    tl.store(nearest + t, best.to(tl.uint8), (t >= first) & (t < end))
