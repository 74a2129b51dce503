"""The CUDA kernels, executed on the CPU: ``pool``, ``pool_padded``, ``pool_to`` and ``pool_padded_to`` as public.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from affinity_pool import Pooled, PooledPadded, checks, rows_left

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


@dataclass(frozen=True)
class Rule:
    """By a threshold, or to a promised number of rows."""

    threshold: float = 0.0
    window: int = 1
    keep: checks.Keep | None = None

    def groups(self, batch: int, rows: int, is_one_run: bool) -> int | None:
        """How many there will be, if it is known beforehand, as csrc/cuda/affinity_pool.cpp has it."""
        if isinstance(self.keep, float):
            return rows_left(rows, self.keep) if is_one_run else None
        if self.keep is None or isinstance(self.keep, Tensor):
            return None
        return self.keep * batch if isinstance(self.keep, int) else sum(self.keep)

    def arguments(self, value_rows: int, fills: bool) -> list[Any]:
        """Of the library: promises, share, promised, promised_each, value_rows, fills_value_rows."""
        share, promised, each = 1.0, None, 0
        if isinstance(self.keep, float):
            share = self.keep
        elif isinstance(self.keep, int):
            each = self.keep
        elif self.keep is not None:
            promised = torch.as_tensor(self.keep, dtype=torch.int32).contiguous()
        return [self.keep is not None, ctypes.c_double(share), promised, each, value_rows, fills]


def launch(
    x: Tensor,
    layout: int,
    batch: int,
    rows: int,
    bounds: Tensor | None,
    mergeable: Tensor | None,
    rule: Rule,
    outputs: tuple[Tensor, ...],
    seed: int | None = None,
    fills: bool = False,
) -> None:
    seed = next(seeds) if seed is None else seed
    chance = random.Random(seed)
    bounds = None if bounds is None else bounds.contiguous()
    mergeable = None if mergeable is None else mergeable.contiguous()
    strides = x.stride()[:-1]
    promises, share, promised, *more = rule.arguments(outputs[0].shape[-2], fills)
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
            ctypes.c_double(rule.threshold),
            rule.window,
            promises,
            share,
            pointer(promised),
            *more,
            *map(pointer, outputs),
            DTYPES[x.dtype],
            chance.choice([0, 3, TILE_ROWS - 1, TILE_ROWS, TILE_ROWS + 1, TILE_ROWS + rule.window]),
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
    return packed(x, cu_seqlens, mergeable, Rule(threshold, window), seed)


def pool_to(
    x: Tensor,
    keep: checks.Keep,
    cu_seqlens: Tensor | None = None,
    *,
    mergeable: Tensor | None = None,
    seed: int | None = None,
) -> Pooled:
    checks.check_pool_to(x, keep, cu_seqlens, mergeable)
    return packed(x, cu_seqlens, mergeable, Rule(keep=keep), seed)


def packed(x: Tensor, cu_seqlens: Tensor | None, mergeable: Tensor | None, rule: Rule, seed: int | None) -> Pooled:
    rows, batch = x.shape[0], 1 if cu_seqlens is None else cu_seqlens.shape[0] - 1
    known = rule.groups(batch, rows, cu_seqlens is None and mergeable is None)
    values = x.new_empty(rows if known is None else known, x.shape[1])
    lengths, ids, counts = ints(batch + 1), ints(rows), ints(len(values))
    if rows == 0 or batch == 0:
        return Pooled(values[:0], lengths.zero_(), ids, counts[:0])
    outputs = (values, lengths, ids, counts)
    fills = known is not None and not isinstance(rule.keep, float)
    launch(dense_rows(x), PACKED, batch, rows, cu_seqlens, mergeable, rule, outputs, seed, fills)
    groups = int(lengths[-1]) if known is None else known
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
    return padded(x, lengths, mergeable, Rule(threshold, window), left_padded, seed)


def pool_padded_to(
    x: Tensor,
    keep: checks.Keep,
    lengths: Tensor | None = None,
    *,
    mergeable: Tensor | None = None,
    left_padded: bool = False,
    seed: int | None = None,
) -> PooledPadded:
    checks.check_pool_padded_to(x, keep, lengths, mergeable)
    return padded(x, lengths, mergeable, Rule(keep=keep), left_padded, seed)


def padded(
    x: Tensor,
    lengths: Tensor | None,
    mergeable: Tensor | None,
    rule: Rule,
    left_padded: bool,
    seed: int | None,
) -> PooledPadded:
    batch, width, _ = x.shape
    values, groups = torch.empty_like(x, memory_format=torch.contiguous_format), ints(batch)
    ids, counts = ints(batch, width), ints(batch, width)
    if batch == 0 or width == 0:
        return PooledPadded(values, groups.zero_(), ids, counts)
    layout = LEFT_PADDED if left_padded else PADDED
    outputs = (values, groups, ids, counts)
    launch(dense_rows(x), layout, batch, width, lengths, mergeable, rule, outputs, seed)
    return PooledPadded(*outputs)
