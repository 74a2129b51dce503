"""What a call of the CUDA kernels should cost, from its shape: bytes, waves, instructions and the way of a tile.

    python -m affinity_pool.benchmarks.without_gpu.cost_model [RESULTS.json ...]

prints the tables of docs/cost-model.md or, given results of the suites gpu and gpu-sweep, predictions beside them.

The model is a prediction to be wrong about. Change a constant when a measurement says so, and say so beside it.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

TILE_ROWS = 8  # as in csrc/cuda/params.h and launch.cuh, from here on
MAX_WARPS = 4
BLOCKS_PER_MULTIPROCESSOR = 4
BLOCK_BYTES = 3712 + 1024  # of shared memory beside rows: the block's own and what CUDA reserves
ROW_PAD = 64  # bytes between rows in shared memory, so that four chunks of eight rows lie in different banks


@dataclass(frozen=True)
class Gpu:
    """Figures of a machine: the first three from its data sheet, the others what is reached, not what is promised."""

    name: str
    multiprocessors: int
    ghz: float
    shared_kb: int
    """Shared memory of a multiprocessor."""
    copy: float
    """TB/s of a large device-to-device copy, bytes read and written."""
    l2: float
    """TB/s from L2 to the multiprocessors."""
    l2_mb: float


GPUS = (
    Gpu("A100", 108, 1.41, 164, copy=1.7, l2=4.0, l2_mb=40),
    Gpu("H100", 132, 1.76, 228, copy=3.0, l2=5.5, l2_mb=50),
    Gpu("H200", 132, 1.76, 228, copy=4.3, l2=5.5, l2_mb=50),
)

# Latencies of the critical path in microseconds: dependent steps, which bandwidth does not shorten.
LAUNCH = 2.0  # from the launch before to the first instruction, and from the last store to the end
SLOT = 0.7  # an atomic in L2 and the tile's bounds
FIRST_BYTE = 0.8  # of a row from memory
EXCHANGE = 0.7  # a word stored by one block and seen by another
STORE = 0.5
FROM_L2 = 0.6  # of what another launch has left there

# Of the selection, as in csrc/cuda/select.cuh:
SELECT_ROWS, KEYS_AT_ONCE, CACHED_KEYS = 256, 4, 4096
DIGITS = 4  # of eight that 64 bits have: links of speech part in the first dozen bits of their mantissa
DIGIT = 0.3  # barriers and the sum over 256 counts
STEP_CACHED = 0.05  # of a thousand keys in shared memory

# Instructions a cycle of a scheduler: a warp waits for its own results, several fill the time.
SCHEDULERS = 4
ISSUED = {1: 0.45, 2: 0.6, 3: 0.7, 4: 0.7}  # by tiles on the multiprocessor, a warp a scheduler each

# Warp instructions of a tile, read from the machine code for sm_90: benchmarks/results/cuda-static.json. For 32 chunks
# of 16 bytes, which are a warp's turn, unless said otherwise.
COPY = 66  # of eight rows to shared memory
FIRST_PASS = {2: 202, 4: 183}  # by bytes of an element; matrix instructions, or fused multiply-adds for four lags
ONE_LAG = 90  # of float32 at window 1
LATER_PASS = {2: 288, 4: 294}  # sixteen lags more, or four
MEAN = {2: 41, 4: 27}  # of a group: its first row, scaling, rounding, storing
MEAN_ROW = {2: 21, 4: 9}  # of each other row
ZERO_ROW = 6  # of a padded result, where a row has joined a group
COMPOSE = 112, 50  # a state and a warp: at any window, and divided by the number of states
REST = 576  # of a warp, once


@dataclass(frozen=True)
class Shape:
    """A call: ``rows`` of ``dim`` features, of which ``retention`` groups are left."""

    rows: int
    dim: int = 4096
    element: int = 2
    window: int = 3
    retention: float = 0.4
    padded: bool = False
    """A padded result has as many rows as its input: zeros where rows merged."""

    @property
    def written(self) -> float:
        return 1.0 if self.padded else self.retention


@dataclass(frozen=True)
class Cost:
    """Predicted, in MB and microseconds."""

    tiles: int
    side_by_side: int
    """Tiles on a multiprocessor."""
    waves: float
    read: float
    written: float
    l2: float
    path: float
    """Of one tile, from launch to end."""
    bound: str
    """What a large call waits for."""
    time: float


def predict(shape: Shape, gpu: Gpu) -> Cost:
    row = shape.dim * shape.element
    tiles = -(-shape.rows // TILE_ROWS)
    side_by_side = resident(row, -(-tiles // gpu.multiprocessors), gpu)
    at_once = side_by_side * gpu.multiprocessors
    read, written = shape.rows * row, shape.rows * shape.written * row
    # Every tile reads the window before it once more, and on average half a group that began before it.
    l2 = tiles * (TILE_ROWS + shape.window + head(shape)) * row
    rate = gpu.multiprocessors * SCHEDULERS * gpu.ghz * 1e3 * ISSUED[side_by_side]
    steps = {
        "memory": (read + written) / gpu.copy / 1e6,
        "L2": (l2 + written) / gpu.l2 / 1e6,
        "instructions": tiles * instructions(shape) / rate,
    }
    active = min(tiles, at_once)
    share = active * (TILE_ROWS + shape.window) * row
    arrives = FIRST_BYTE + max(share * TILE_ROWS / (TILE_ROWS + shape.window) / gpu.copy, share / gpu.l2) / 1e6
    computes = instructions(shape) * side_by_side * gpu.multiprocessors / rate  # composing what lies between included
    writes = active * TILE_ROWS * shape.written * row / gpu.copy / 1e6 + STORE
    path = LAUNCH + SLOT + arrives + computes + EXCHANGE + writes
    bound = max(steps, key=lambda name: steps[name])
    # The first wave fills the pipeline; what follows flows at the rate of the narrowest place.
    time = path + max(steps.values()) * max(0.0, 1 - at_once / tiles)
    mb = 1e6
    return Cost(tiles, side_by_side, tiles / at_once, read / mb, written / mb, l2 / mb, path, bound, time)


@dataclass(frozen=True)
class PromisedCost:
    """Predicted of a call to a promised number of rows, in microseconds: three launches."""

    link: float
    select: float
    pool: float

    @property
    def time(self) -> float:
        return self.link + self.select + self.pool


def predict_promised(shape: Shape, gpu: Gpu) -> PromisedCost:
    """One sequence that is one run, as most are. Its rows are read from memory once, and from L2 if they fit there."""
    row = shape.dim * shape.element
    tiles = -(-shape.rows // TILE_ROWS)
    side_by_side = resident(row, -(-tiles // gpu.multiprocessors), gpu)
    at_once = side_by_side * gpu.multiprocessors
    rate = gpu.multiprocessors * SCHEDULERS * gpu.ghz * 1e3 * ISSUED[side_by_side]
    later = max(0.0, 1 - at_once / tiles)
    wave = min(tiles, at_once) * TILE_ROWS * row / 1e6
    in_all, written = shape.rows * row / 1e6, shape.rows * shape.written * row / 1e6
    dots, means = instructions_of_links(shape), instructions(shape) - instructions_of_links(shape)

    reads = gpu.l2 if in_all <= gpu.l2_mb else gpu.copy
    link = LAUNCH + FIRST_BYTE + wave / gpu.copy + dots * side_by_side * gpu.multiprocessors / rate + STORE
    link += max(in_all / gpu.copy, tiles * dots / rate) * later
    told = LAUNCH + SLOT + FROM_L2 + wave / reads + means * side_by_side * gpu.multiprocessors / rate
    told += EXCHANGE + wave * shape.written / gpu.copy + STORE
    told += max(in_all / reads + written / gpu.copy, tiles * means / rate) * later
    return PromisedCost(link, select_time(shape.rows), told)


def instructions_of_links(shape: Shape) -> float:
    """Warp instructions of a tile whose rows are copied and compared with the row before each."""
    dots = FIRST_PASS[2] if shape.element == 2 else ONE_LAG
    return shape.dim * shape.element / 16 / 32 * (COPY + dots) + warps(shape.dim * shape.element) * REST / 2


def select_time(rows: int) -> float:
    """Of one block, which selects in a run of so many rows, while others find that no run begins among theirs."""
    steps = math.ceil(max(0, rows - SELECT_ROWS) / (SELECT_ROWS * KEYS_AT_ONCE))
    cached = min(steps, CACHED_KEYS // (SELECT_ROWS * KEYS_AT_ONCE))
    walk = cached * STEP_CACHED + (steps - cached) * FROM_L2
    return LAUNCH + (1 + steps) * FROM_L2 + DIGITS * (DIGIT + walk) + walk + STORE


def warps(row: int) -> int:
    return min(MAX_WARPS, max(2, -(-row // 16 // 32)))


def resident(row: int, wanted: int, gpu: Gpu) -> int:
    """Tiles on a multiprocessor: as many as there are, up to four whose own rows fit in shared memory."""
    for blocks in range(min(wanted, BLOCKS_PER_MULTIPROCESSOR), 1, -1):
        if gpu.shared_kb * 1024 // blocks - BLOCK_BYTES >= TILE_ROWS * (row + ROW_PAD):
            return blocks
    return 1


def head(shape: Shape) -> float:
    """Rows of an open group before a tile that its window does not hold; at most seven, sums stand for the rest."""
    return max(0.0, min(7.0, (1 / shape.retention - 1) / 2) - shape.window)


def instructions(shape: Shape) -> float:
    """Warp instructions of a tile; cuda_work.py counts the same for four cases, from the machine code."""
    element, row = shape.element, shape.dim * shape.element
    groups = TILE_ROWS * shape.retention
    if element == 2:
        dots = FIRST_PASS[2] + (0 if shape.window <= 8 else 1 if shape.window <= 24 else 2) * LATER_PASS[2]
    else:
        dots = ONE_LAG if shape.window == 1 else FIRST_PASS[4] + (shape.window // 4) * LATER_PASS[4]
    turn = COPY + dots + groups * MEAN[element] + (TILE_ROWS - groups) * MEAN_ROW[element]
    turn += (TILE_ROWS - groups) * ZERO_ROW if shape.padded else 0
    states = 1 << (shape.window - 1).bit_length()
    composed = states * COMPOSE[0] + COMPOSE[1] * math.log2(2 * states)
    return row / 16 / 32 * turn + warps(row) * (composed + REST)


SHAPES = [
    Shape(64),
    Shape(256),
    Shape(750),
    Shape(750, padded=True),
    Shape(750, element=4),
    Shape(1500),
    Shape(1500, window=1, retention=0.8),
    Shape(1500, window=8),
    Shape(1500, window=32),
    Shape(1500, dim=8192),
    Shape(12000),
    Shape(65536),
    Shape(65536, padded=True),
    Shape(1 << 20),
]


def table() -> str:
    titles = ["rows", "D", "bytes", "window", "kept", "tiles", "thousand instructions a tile"]
    titles += ["read + written MB", "L2 MB"]
    titles += [f"{gpu.name}: waves, path, **time** us" for gpu in GPUS]
    lines = [titles, ["---"] * len(titles)]
    for shape in SHAPES:
        costs = [predict(shape, gpu) for gpu in GPUS]
        one = costs[0]
        rows = f"{shape.rows}, padded" if shape.padded else shape.rows
        line = [rows, shape.dim, shape.element, shape.window, f"{shape.retention:.0%}", one.tiles]
        line += [f"{instructions(shape) / 1000:.1f}"]
        line += [f"{one.read:.1f} + {one.written:.1f}", f"{one.l2:.1f}"]
        line += [f"{c.waves:.1f}, {c.path:.1f}, **{c.time:.4g}** ({c.bound})" for c in costs]
        lines.append([str(cell) for cell in line])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


PROMISED = [
    Shape(750, window=1),
    Shape(1500, window=1),
    Shape(1500, window=1, element=4),
    Shape(1500, window=1, retention=0.8),
    Shape(17_000, window=1),
    Shape(65_536, window=1),
]


def promised_table() -> str:
    titles = ["rows", "D", "bytes", "kept"]
    titles += [f"{gpu.name}: links + selection + pooling, **in all** us; `pool`, window 1" for gpu in GPUS]
    lines = [titles, ["---"] * len(titles)]
    for shape in PROMISED:
        line = [str(shape.rows), str(shape.dim), str(shape.element), f"{shape.retention:.0%}"]
        for gpu in GPUS:
            cost, pool = predict_promised(shape, gpu), predict(shape, gpu).time
            line.append(f"{cost.link:.1f} + {cost.select:.1f} + {cost.pool:.1f}, **{cost.time:.4g}**; {pool:.4g}")
        lines.append(line)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def compare(path: Path) -> str:
    """Predicted and measured microseconds of a results file of the GPU suites."""
    results = json.loads(path.read_text())
    name = results["provenance"]["device"]
    gpu = next((g for g in GPUS if g.name in name), None)
    if gpu is None:
        return f"{path}: no figures for {name}"
    lines = [f"{name}, {path}"]
    for record in results["results"]:
        case, ours = record["case"], record["contenders"].get("ours", {})
        if "graph" not in ours:
            continue
        element = 4 if case["dtype"] == "float32" else 2
        rows = case["tokens"] * case["batch"]  # by pool_padded, which a graph can hold
        shape = Shape(rows, case["dim"], element, case["window"], record["retention_measured"], padded=True)
        told = {"ours": predict(shape, gpu).time, "ours to a count": predict_promised(shape, gpu).time}
        for contender, predicted in told.items():
            if "graph" in record["contenders"].get(contender, {}):
                measured = record["contenders"][contender]["graph"]["us"]["p50"]
                ratio = f"{measured / predicted:.2f}x"
                lines.append(f"{case}, {contender}: predicted {predicted:.1f} us, measured {measured:.1f} us, {ratio}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path)
    options = parser.parse_args()
    print("\n".join(map(compare, options.results)) if options.results else f"{table()}\n\n{promised_table()}")


if __name__ == "__main__":
    main()
