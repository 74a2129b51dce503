"""Launch 2 if a number of rows is promised: a byte a row, by which the weakest links begin groups.

A run is a row that begins one, by its word, and the rows up to the next. Of its n rows m begin groups: those of the m
smallest words, of equal ones the earliest; the first row has the smallest of all. A program has a STRETCH of rows and
decides for the runs that begin in it, whole, so each byte is written by one program and no program waits.

1. Runs that end in the stretch, all at once: a row's rank is the number of rows of its run that come before it in that
   order, counted in a table of STRETCH by STRETCH.
2. The last may go on. It is walked BLOCK rows at a time, once for its end, its weakest and its strongest link. Then the
   word of rank m is enclosed between the two, by halves: of the words up to the middle there are m or more, or fewer.
   It is found when there are exactly m, or when the two meet. A last walk counts equal links in order and writes.

Time, from the instructions for sm_90 at 1.7 GHz: computed, not measured. A stretch in which no run begins takes 0.6 us,
most of it the load, and step 1 takes 1 us, 0.2 of which keep an SM busy: so a million rows in runs of a few take 50 us.
In step 2 a walk to find the end takes 0.45 us a block, one that counts 0.07, for L1 has the words by then, and 0.15 for
the sum, one that writes 0.3. As a rule log2(n) halvings and a few tell the two links beside the cut apart: 7 us in all
for 1500 rows, 35 for 17 thousand. The most is 64, if the cut falls among equal links or links crowd around it: 20 us
and 95. If all links are equal, or one row or all are left, there is none. A walk is linear in the run, whatever it
holds.

Traffic. 8 N bytes in, N out, and what a long run rereads. Determinism: all of it is integers but the number of rows
that a share leaves, one product in float64, rounded before the subtraction as it is in Python.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .links import BEGINS, WEAKEST
from .nearest_match import NO_MATCH

STRETCH = tl.constexpr(2**5)
BLOCK = tl.constexpr(2**10)
BLOCKS_IN_FLIGHT = tl.constexpr(2)
STRONGEST = tl.constexpr(2**63 - 1)  # above every link
NUM_WARPS = 4


@triton.jit
def rows_left(n: tl.tensor, promise: tl.tensor, share: tl.tensor) -> tl.tensor:
    """Of runs of n rows: as many as promised, or by :func:`affinity_pool.rows_left`; 1 to n, whatever is asked."""
    left = tl.ceil(n.to(tl.float64) * share - tl.full(n.shape, 1e-9, tl.float64))
    left = tl.minimum(tl.maximum(left, 1), n.to(tl.float64)).to(tl.int32)
    return tl.minimum(tl.where(promise > 0, promise, left), n)


@triton.jit
def begins_group(begins: tl.tensor) -> tl.tensor:
    """As a byte for the scan: no match, or one with the row before."""
    return tl.where(begins, NO_MATCH, 1).to(tl.uint8)


@triton.jit
def select_in_run(links: tl.tensor, nearest: tl.tensor, most: tl.tensor, promise: tl.tensor, share: tl.tensor) -> None:
    """Step 2, of a run of so many rows at most; both pointers are to its first."""
    column = tl.arange(0, BLOCK)
    low = tl.full((BLOCK,), STRONGEST, tl.int64)
    high = tl.full((BLOCK,), BEGINS, tl.int64)
    n = 1
    block, rest = links + 1, most - 1
    while rest > 0:
        word = tl.load(block + column, column < rest, other=BEGINS)
        here = tl.min(tl.where(word < WEAKEST, column, BLOCK), 0)
        low = tl.minimum(low, tl.where(column < here, word, STRONGEST))
        high = tl.maximum(high, tl.where(column < here, word, BEGINS))
        n += here
        block += BLOCK
        rest = tl.where(here < BLOCK, 0, rest - BLOCK)

    m = rows_left(n, promise, share)
    low, high = tl.min(low, 0), tl.max(high, 0)  # between them is the word of rank m, unless it is the first row's
    high = tl.where(m == 1, low, high)
    low = tl.where(m == n, high, low)
    fewer = 1  # rows of words below low
    while low < high:
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        counts = tl.zeros((BLOCK,), tl.int32)
        block, rest = links + 1, n - 1
        while rest > 0:
            for _ in tl.static_range(BLOCKS_IN_FLIGHT):
                counts += (tl.load(block + column, column < rest, other=STRONGEST) <= middle).to(tl.int32)
                block += BLOCK
                rest -= BLOCK
        count = tl.sum(counts, 0) + 1
        fewer = tl.where(count < m, count, fewer)
        low = tl.where(count < m, middle + 1, tl.where(count == m, middle, low))
        high = tl.where(count < m, high, middle)

    taken = fewer
    rest = n
    while rest > 0:
        word = tl.load(links + column, column < rest, other=STRONGEST)
        equal = (word == low).to(tl.int32)
        begins = (word < low) | ((equal == 1) & (tl.cumsum(equal, 0) <= m - taken))
        tl.store(nearest + column, begins_group(begins), column < rest)
        taken += tl.sum(equal, 0)
        links += BLOCK
        nearest += BLOCK
        rest -= BLOCK


@triton.jit(do_not_specialize=["links", "nearest", "total"])
def select(links: tl.tensor, nearest: tl.tensor, total: tl.int64, share: tl.float64) -> None:
    begin = tl.program_id(0).to(tl.int64) * STRETCH
    place = tl.arange(0, STRETCH)
    row = begin + place
    word = tl.load(links + row, row < total, other=BEGINS)
    begins = word < WEAKEST
    run = tl.cumsum(begins.to(tl.int32), 0)  # 0: one that begins before the stretch
    last = tl.max(run, 0)
    if last == 0:
        return
    after = begin + STRETCH
    goes_on = tl.load(links + after, after < total, other=BEGINS) >= WEAKEST

    promise = tl.where(begins, word - BEGINS, 0).to(tl.int32)
    same = run[:, None] == run[None, :]
    before = (word[None, :] < word[:, None]) | ((word[None, :] == word[:, None]) & (place[None, :] < place[:, None]))
    rank = tl.sum((same & before).to(tl.int32), 1)
    n = tl.sum(same.to(tl.int32), 1)
    m = rows_left(n, tl.sum(tl.where(same, promise[None, :], 0), 1), share)
    ours = (run > 0) & ((run < last) | (not goes_on))
    tl.store(nearest + row, begins_group(rank < m), ours & (row < total))

    if goes_on:
        is_first = begins & (run == last)
        first = begin + tl.sum(tl.where(is_first, place, 0), 0)
        promised = tl.sum(tl.where(is_first, promise, 0), 0)
        select_in_run(links + first, nearest + first, (total - first).to(tl.int32), promised, share)
