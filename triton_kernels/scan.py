"""Launch 2: the groups, from a byte a row. Packed sequences are one.

The open group's length, capped at the window, is all that row t needs to know of the past. It becomes length + 1 if
k(t) <= length, and 1 if not, for then the row opens a group. These maps of lengths compose: so a sequence is cut into
RUNS runs of rows, all of which are walked at once by one program.

1. Each run from every length it may begin with: what length it ends with, and how many groups it opens.
2. The maps of two neighbours are composed into one, those of two pairs, and so on: log2(RUNS) rounds of table look-ups,
   after which a run knows the length that it begins with, and from a sum over earlier runs how many groups precede it.
3. Each run again, from that length: ids, and the first row of each group.

Beyond ONE_CHUNK rows a sequence is cut into chunks first, up to CHUNKS, and a program has a chunk. A launch before this
one takes each chunk through steps 1 and 2 and leaves a word for every length it may begin with: the length it ends with
and the groups it opens. Here every program composes the words of all chunks, which is step 2 again, and so knows the
length and the groups before its own. None waits for another; a launch that composed them once would take longer than
all do at once.

Time, from the instructions for sm_90 at 1.7 GHz: computed, not measured. A row of a run costs 0.08 us in step 1, a load
and two barriers, and 0.04 in step 3, a load and what waits for it; step 2 costs 2 us, 0.8 for chunks. So 1500 rows, six
a run, take 3 us, most of it step 2, and a million would take one program 0.5 ms. Chunks of 16 rows a run take 16 times
0.08 twice and 0.04 once, step 2 twice, once for chunks, and 2 us for the launch: 10 us, up to half a million rows. One
program takes as long for 17 thousand. A million rows, 32 a run, take 13 us, or what L2 needs for a million stores that
share no sector, 10 us for ids and as many for starts if no row merges: 35 at most. At window 32, where a row costs 0.35
in step 1 and step 2 4 us, they take 35 rather than 1600. No input is slow otherwise, neither one group of everything
nor rows that alternate. The alternative in step 2 was tl.associative_scan over maps packed into words: 50 instructions
to compose two at window 8, a thousand at window 32.

There may be room for fewer groups, if their number was promised for packed sequences whose bounds make no sense: then
the last group takes the rest.

Traffic. N bytes twice, in chunks three times, 4 N bytes of ids, 4 M of starts; the words are 2 KB, 16 at window 32, for
each program to read from L2. Nothing passes from thread to thread through global memory within a launch: of
tl.debug_barrier AMD's compiler makes a barrier that waits for no store. And all of it is integers: there is no order of
operations that could matter.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .sequences import valid_rows

RUNS = tl.constexpr(2**8)
CHUNKS = tl.constexpr(2**7)
ONE_CHUNK = 2**14
CHUNK = 2**12
NUM_WARPS = 8


def states_of(window: int) -> int:
    """Room for every length of an open group; three sizes, so that few windows compile anew."""
    return 4 if window <= 4 else 8 if window <= 8 else 32


def rows_of_run(rows: int) -> int:
    """In a sequence of so many: of one chunk while that is quicker, then of chunks of CHUNK, then of CHUNKS chunks."""
    chunk = rows if rows <= ONE_CHUNK else max(CHUNK, triton.cdiv(rows, CHUNKS.value))
    return triton.cdiv(chunk, RUNS.value)


@triton.jit
def join_or_open(length: tl.tensor, k: tl.tensor, window: tl.tensor) -> tl.tuple:
    """The open group's length after a row, and 1 if the row has opened it."""
    joins = k.to(tl.int32) <= length
    return tl.where(joins, tl.minimum(length + 1, window), 1), tl.where(joins, 0, 1)


@triton.jit
def maps_of_runs(
    nearest: tl.tensor, begin: tl.tensor, run_rows: tl.tensor, first: tl.tensor, end: tl.tensor,
    window: tl.tensor, left: tl.constexpr, states: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """``[RUNS, states]`` by run and length before it, less 1: the length after the run, and the groups that it opens.

    Where there is no row a length grows, which does no harm: a row that opens a group is next, or none.
    """
    last = tl.zeros((RUNS, states), tl.int32) + tl.arange(0, states)[None, :] + 1
    opened = tl.zeros((RUNS, states), tl.int32)
    i = 0
    while i < run_rows:
        t = begin + i
        exists = (t >= first) & (t < end) if left else t < end
        last, opens = join_or_open(last, tl.load(nearest + t, exists, other=0)[:, None], window)
        opened += opens
        i += 1
    return last, opened


@triton.jit
def composed(last: tl.tensor) -> tl.tensor:
    """The lengths after pieces by the length before the first, from those by the length before each."""
    piece = tl.arange(0, last.shape[0])
    for level in tl.static_range(8):  # of 256 pieces; fewer need fewer
        if 1 << level < last.shape[0]:
            earlier = tl.maximum(piece - (1 << level), 0)[:, None] + tl.zeros(last.shape, tl.int32)
            both = tl.gather(last, tl.gather(last, earlier, 0) - 1, 1)
            last = tl.where((piece >= 1 << level)[:, None], both, last)
    return last


@triton.jit
def entered(last: tl.tensor, opened: tl.tensor, length: tl.tensor) -> tl.tuple:
    """With this length before the first piece: the length before each, and the groups that it opens."""
    piece = tl.arange(0, last.shape[0])
    before = tl.arange(0, last.shape[1])[None, :] + 1
    after = tl.sum(tl.where(before == length, composed(last), 0), 1)
    lengths = tl.where(piece == 0, length, tl.gather(after, tl.maximum(piece - 1, 0), 0))
    return lengths, tl.sum(tl.where(before == lengths[:, None], opened, 0), 1)


@triton.jit(do_not_specialize=["nearest", "lengths", "maps", "rows", "run_rows", "window"])
def maps_of_chunks(
    nearest: tl.tensor,
    lengths: tl.tensor,
    maps: tl.tensor,
    rows: tl.int32,
    run_rows: tl.int32,
    window: tl.int32,
    left: tl.constexpr,
    states: tl.constexpr,
) -> None:
    sequence = tl.program_id(0).to(tl.int64)
    first, end = valid_rows(lengths, sequence, rows, left)
    begin = (tl.program_id(1) * RUNS + tl.arange(0, RUNS)) * run_rows
    last, opened = maps_of_runs(nearest + sequence * rows, begin, run_rows, first, end, window, left, states)

    run = tl.arange(0, RUNS)[:, None] + tl.zeros((RUNS, states), tl.int32)
    state = tl.arange(0, states)
    last = composed(last)
    before = tl.where(run == 0, state[None, :] + 1, tl.gather(last, tl.maximum(run - 1, 0), 0))
    opened = tl.sum(tl.gather(opened, before - 1, 1), 0)
    last = tl.sum(tl.where(run == RUNS - 1, last, 0), 0)
    maps += (sequence * tl.num_programs(1) + tl.program_id(1)) * states
    tl.store(maps + state, opened * states + last - 1)


@triton.jit(do_not_specialize=["nearest", "lengths", "maps", "rows", "places", "run_rows", "window"])
def scan(
    nearest: tl.tensor,
    lengths: tl.tensor,
    maps: tl.tensor,
    segment_ids: tl.tensor,
    starts: tl.tensor,
    groups: tl.tensor,
    rows: tl.int32,
    places: tl.int32,
    run_rows: tl.int32,
    window: tl.int32,
    left: tl.constexpr,
    states: tl.constexpr,
) -> None:
    sequence = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    nearest += sequence * rows
    segment_ids += sequence * rows
    starts += sequence * (rows + 1)
    first, end = valid_rows(lengths, sequence, rows, left)
    begin = (chunk * RUNS + tl.arange(0, RUNS)) * run_rows

    length = 1  # before the chunk; any would do before the first, for the first row opens a group
    group = -1
    if maps is not None:
        each = tl.arange(0, CHUNKS)
        maps += sequence * tl.num_programs(1) * states
        at = each[:, None] * states + tl.arange(0, states)[None, :]
        word = tl.load(maps + at, (each < tl.num_programs(1))[:, None], other=0)
        chunk_length, chunk_opened = entered(word % states + 1, word // states, 1)
        length = tl.sum(tl.where(each == chunk, chunk_length, 0), 0)
        group += tl.sum(tl.where(each < chunk, chunk_opened, 0), 0)

    last, opened = maps_of_runs(nearest, begin, run_rows, first, end, window, left, states)
    length, opened = entered(last, opened, length)
    group += tl.cumsum(opened, 0) - opened
    found = tl.minimum(tl.sum(opened if maps is None else chunk_opened, 0), places)
    if chunk == 0:
        tl.store(groups + sequence, found)
        tl.store(starts + found, end)

    first_id = rows - found if left else 0
    i = 0
    while i < run_rows:
        t = begin + i
        exists = (t >= first) & (t < end) if left else t < end
        length, opens = join_or_open(length, tl.load(nearest + t, exists, other=0), window)
        group += opens
        tl.store(segment_ids + t, tl.where(exists, first_id + tl.minimum(group, places - 1), -1), t < rows)
        tl.store(starts + group, t, exists & (opens == 1) & (group < places))
        i += 1
