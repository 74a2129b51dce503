"""How many instructions the warps of a block issue for a tile, counted along its way through the machine code.

The tile: eight rows of 4096 16-bit features, its own rows in shared memory and no others, as with three tiles on a
multiprocessor; 40 % of its rows open groups, which end in it; none has a match before the window's end, and all four
warps have something to compose. Loops take the turns that follow from that. Between them, and where a warp has a
choice, the count is of the shortest way: a little less than a tile really takes. Nothing is counted for waiting.
"""

from __future__ import annotations

from dataclasses import dataclass

from .sass import Code, Loop, opcode

ROWS, WARPS, CHUNKS_A_WARP = 8, 4, 128  # of 16 bytes
RETENTION = 0.4
WINDOWS = (1, 3, 8, 32)


@dataclass(frozen=True)
class Work:
    """Warp instructions of a tile, by what they are for."""

    architecture: str
    window: int
    copies: int
    dots: int
    decisions: int
    composition: int
    means: int
    rest: int
    """Between the loops: the draw of a slot, what it is, addresses, flags."""
    total: int


def work(architecture: str, code: Code, window: int) -> Work:
    """Of the kernel for 16-bit rows at whole addresses."""
    hmma = opcode("HMMA")
    copies = code.loop_with(opcode("LDGSTS"), 4)
    column = code.loop_with(opcode("LDGSTS"), 4, around=copies)
    first = code.loop_with(hmma, 16)
    later = min((loop for loop in code.loops if code.count(loop, hmma) == 6), key=lambda loop: loop.size)
    lags = code.loop_with(opcode("DSETP"), 1)
    levels = code.loop_with(opcode("SHFL", "IDX"), 1)
    states = code.loop_with(opcode("SHFL", "IDX"), 3, around=levels)
    rows = min((loop for loop in code.loops if code.count(loop, opcode("FADD")) == 16), key=lambda loop: loop.size)
    pair = code.loop_with(opcode("STG", "128"), 2, around=rows)
    group = code.loop_with(opcode("STG", "128"), 2, around=pair)

    def inside(loop: Loop) -> list[int]:
        return list(range(loop.head, loop.back + 1))

    def turn(loop: Loop, *inner: Loop) -> int:
        return code.turn(loop, [inside(other) for other in inner])

    passes = 1 if window <= 8 else 2 if window <= 24 else 3
    power = 1 << (window - 1).bit_length()
    apart = (32 // power - 1).bit_length()
    pairs, in_group = CHUNKS_A_WARP // 32 // 2, 1 / RETENTION - 1
    groups = ROWS * RETENTION

    copied = CHUNKS_A_WARP // 32 * (turn(column, copies) + (ROWS // 4 - 1) * turn(copies))
    multiplied = CHUNKS_A_WARP // 16 * turn(first) + (passes - 1) * CHUNKS_A_WARP // 4 * turn(later)
    decided = sum(-(-min(16 * p + 16, window + 1) // 4) - max(0, 4 * p - 2) for p in range(passes)) * turn(lags)
    composed = power * (turn(states, levels) + (apart - 1) * turn(levels))
    averaged = groups * (turn(group, pair) + (pairs - 1) * turn(pair, rows) + pairs * (in_group - 1) * turn(rows))

    # Each loop once, on the way from end to end. Warp 0 also draws the slot and decides.
    loops = [inside(loop) for loop in (column, first, states, pair)]
    once = turn(column, copies) + turn(first) + turn(states, levels) + turn(group, pair)
    ends = opcode("EXIT")
    everyone = code.way(0, ends, [*loops[:2], code.places(opcode("BAR", "RED")), *loops[2:]])
    warp_0 = code.way(0, ends, [code.places(opcode("ATOMG")), *loops[:2], inside(lags), *loops[2:]]) - turn(lags)
    rest = (WARPS - 1) * everyone + warp_0 - WARPS * once

    parts = {
        "copies": WARPS * copied,
        "dots": WARPS * multiplied,
        "decisions": decided,
        "composition": WARPS * composed,
        "means": round(WARPS * averaged),
        "rest": rest,
    }
    return Work(architecture, window, **parts, total=sum(parts.values()))
