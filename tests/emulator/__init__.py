"""The CUDA kernel, executed on the CPU: ``pool`` and ``pool_padded`` with the public signatures.

The kernel source is compiled with the CPU's compiler against a scheduler that plays the GPU (emulator.h). Each call
draws its own geometry (rows kept in shared memory, resident blocks, the order in which blocks start, chances of a
switch) from a counter, so that a suite of calls covers many; a failing call is repeated by its seed, which the error
names.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import random
import shutil
from pathlib import Path

import torch
from torch import Tensor

from affinity_pool import Pooled, PooledPadded, checks

from .build import CXX, build

PACKED, PADDED, LEFT_PADDED = range(3)
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
TILE_ROWS = 8

seeds = itertools.count(int(os.environ.get("EMULATOR_SEED", "0")))


@functools.cache
def library() -> ctypes.CDLL:
    # A kernel to look for faults in may lie elsewhere: tests/mutations.
    built = os.environ.get("EMULATOR_LIBRARY")
    loaded = ctypes.CDLL(str(Path(built) if built else build("library")))
    loaded.emulator_pool.restype = ctypes.c_char_p
    loaded.emulator_sum_offset.restype = ctypes.c_int64
    return loaded


def missing() -> str | None:
    """Why the kernel cannot be executed here, or None."""
    return None if shutil.which(CXX.split()[0]) else f"emulator: no C++ compiler {CXX}"


def launch(
    x: Tensor,
    layout: int,
    batch: int,
    rows: int,
    bounds: Tensor | None,
    mergeable: Tensor | None,
    threshold: float,
    window: int,
    outputs: tuple[Tensor, ...],
    seed: int | None = None,
) -> None:
    seed = next(seeds) if seed is None else seed
    chance = random.Random(seed)
    bounds = None if bounds is None else bounds.contiguous()
    mergeable = None if mergeable is None else mergeable.contiguous()
    strides = x.stride()[:-1]
    error = (
        library()
        .emulator_pool(
            pointer(x),
            ctypes.c_int64(strides[-1]),
            ctypes.c_int64(strides[0] if len(strides) == 2 else 0),
            x.shape[-1],
            batch,
            rows,
            pointer(bounds),
            pointer(mergeable),
            layout,
            ctypes.c_double(threshold),
            window,
            *map(pointer, outputs),
            DTYPES[x.dtype],
            chance.choice([0, 3, TILE_ROWS - 1, TILE_ROWS, TILE_ROWS + 1, TILE_ROWS + window]),
            chance.choice([1, 2, 3, 7, 32, 80]),
            chance.randrange(3),
            chance.choice([0, 5, 50]),
            ctypes.c_uint64(seed),
        )
        .decode()
    )
    if error:
        raise RuntimeError(f"emulator, seed {seed}: {error}")


def sum_offset(dtype: torch.dtype, tile: int, stride: int, chunk: int) -> int:
    """Floats from the first row of sums to chunk ``chunk`` of tile ``tile``'s."""
    return int(library().emulator_sum_offset(dtype.itemsize, tile, ctypes.c_int64(stride), chunk))


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def dense_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def ints(*size: int) -> Tensor:
    return torch.empty(*size, dtype=torch.int32)


def pool(
    x: Tensor,
    cu_seqlens: Tensor | None = None,
    *,
    mergeable: Tensor | None = None,
    threshold: float = 0.8,
    window: int = 3,
    seed: int | None = None,
) -> Pooled:
    checks.check_pool(x, cu_seqlens, mergeable, threshold, window)
    rows, batch = x.shape[0], 1 if cu_seqlens is None else cu_seqlens.shape[0] - 1
    values, lengths, ids, counts = (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        ints(batch + 1),
        ints(rows),
        ints(rows),
    )
    if rows == 0 or batch == 0:
        return Pooled(values[:0], lengths.zero_(), ids, counts[:0])
    launch(
        dense_rows(x),
        PACKED,
        batch,
        rows,
        cu_seqlens,
        mergeable,
        threshold,
        window,
        (values, lengths, ids, counts),
        seed,
    )
    groups = int(lengths[-1])
    return Pooled(values[:groups], lengths, ids, counts[:groups])


def pool_padded(
    x: Tensor,
    lengths: Tensor | None = None,
    *,
    mergeable: Tensor | None = None,
    threshold: float = 0.8,
    window: int = 3,
    left_padded: bool = False,
    seed: int | None = None,
) -> PooledPadded:
    checks.check_pool_padded(x, lengths, mergeable, threshold, window)
    batch, width, _ = x.shape
    values, groups = torch.empty_like(x, memory_format=torch.contiguous_format), ints(batch)
    ids, counts = ints(batch, width), ints(batch, width)
    if batch == 0 or width == 0:
        return PooledPadded(values, groups.zero_(), ids, counts)
    layout = LEFT_PADDED if left_padded else PADDED
    outputs = (values, groups, ids, counts)
    launch(dense_rows(x), layout, batch, width, lengths, mergeable, threshold, window, outputs, seed)
    return PooledPadded(*outputs)
