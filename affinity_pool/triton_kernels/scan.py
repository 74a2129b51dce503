"""Launch 2: the groups, from a byte a row. A program has a sequence; packed sequences are one.

The open group's length, capped at the window, is all that row t needs to know of the past. It becomes length + 1 if
k(t) <= length, and 1 if not, for then the row opens a group. These maps of lengths compose: so a sequence is cut into
RUNS runs of rows, all of which are walked at once.

1. Each run from every length it may begin with: what length it ends with, and how many groups it opens.
2. The maps of two neighbours are composed into one, those of two pairs, and so on: log2(RUNS) rounds of table look-ups,
   after which a run knows the length that it begins with, and from a sum over earlier runs how many groups precede it.
3. Each run again, from that length: ids, and the first row of each group.

At T = 1500 a run is six rows and step 2 most of the work. A million rows should take 0.3 ms, a tenth of what the other
launches need for rows of 4096. No input is slow, neither one group of everything nor rows that alternate. The
alternative was tl.associative_scan over maps packed into words: 50 instructions to compose two at window 8, a thousand
at window 32.

Traffic. N bytes twice, 4 N bytes of ids, 4 M of starts. Nothing passes from thread to thread through global memory: of
tl.debug_barrier AMD's compiler makes a barrier that waits for no store. And all of it is integers: there is no order of
operations that could matter.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .sequences import valid_rows

LOG_RUNS = tl.constexpr(8)
RUNS = tl.constexpr(2**8)
NUM_WARPS = 8


def states_of(window: int) -> int:
    """Room for every length of an open group; three sizes, so that few windows compile anew."""
    return 4 if window <= 4 else 8 if window <= 8 else 32


@triton.jit
def join_or_open(length: tl.tensor, k: tl.tensor, window: tl.tensor) -> tl.tuple:
    """The open group's length after a row, and 1 if the row has opened it."""
    joins = k.to(tl.int32) <= length
    return tl.where(joins, tl.minimum(length + 1, window), 1), tl.where(joins, 0, 1)


@triton.jit
def first_lengths(last: tl.tensor, states: tl.constexpr) -> tl.tensor:
    """``[RUNS]``, the open group's length before each run, from ``last[run, length before - 1]``.

    The first run's is 1: any would do, for its first row matches none and opens a group.
    """
    run = tl.arange(0, RUNS)
    for level in tl.static_range(LOG_RUNS):
        earlier = tl.maximum(run - (1 << level), 0)[:, None] + tl.zeros((RUNS, states), tl.int32)
        composed = tl.gather(last, tl.gather(last, earlier, 0) - 1, 1)
        last = tl.where((run >= 1 << level)[:, None], composed, last)
    from_one = tl.sum(tl.where(tl.arange(0, states)[None, :] == 0, last, 0), 1)
    return tl.where(run == 0, 1, tl.gather(from_one, tl.maximum(run - 1, 0), 0))


@triton.jit(do_not_specialize=["nearest", "lengths", "rows", "window"])
def scan(
    nearest: tl.tensor,
    lengths: tl.tensor,
    segment_ids: tl.tensor,
    starts: tl.tensor,
    groups: tl.tensor,
    rows: tl.int32,
    window: tl.int32,
    left: tl.constexpr,
    states: tl.constexpr,
) -> None:
    sequence = tl.program_id(0).to(tl.int64)
    nearest += sequence * rows
    segment_ids += sequence * rows
    starts += sequence * (rows + 1)
    first, end = valid_rows(lengths, sequence, rows, left)
    run_length = tl.cdiv(end - first, RUNS)
    begin = tl.minimum(first + tl.arange(0, RUNS) * run_length, end)
    rows_here = tl.minimum(end - begin, run_length)

    # Step 1
    before = tl.arange(0, states)[None, :] + 1
    last = tl.zeros((RUNS, states), tl.int32) + before
    opened = tl.zeros((RUNS, states), tl.int32)
    i = 0
    while i < run_length:
        k = tl.load(nearest + begin + i, i < rows_here, other=0)  # 0: no row, which joins and opens nothing
        last, opens = join_or_open(last, k[:, None], window)
        opened += opens
        i += 1

    # Step 2
    length = first_lengths(last, states)
    opened_here = tl.sum(tl.where(before == length[:, None], opened, 0), 1)
    group = tl.cumsum(opened_here, 0) - opened_here - 1
    found = tl.sum(opened_here, 0)
    tl.store(groups + sequence, found)
    tl.store(starts + found, end)

    # Step 3
    first_id = rows - found if left else 0
    i = 0
    while i < run_length:
        exists = i < rows_here
        length, opens = join_or_open(length, tl.load(nearest + begin + i, exists, other=0), window)
        group += opens
        tl.store(segment_ids + begin + i, first_id + group, exists)
        tl.store(starts + group, begin + i, exists & (opens == 1))
        i += 1

    if lengths is not None:
        t = 0
        while t < rows:
            row = t + tl.arange(0, RUNS)
            tl.store(segment_ids + row, -1, (row < rows) & ((row < first) | (row >= end)))
            t += RUNS
