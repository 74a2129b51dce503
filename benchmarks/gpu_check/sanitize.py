"""A short program for compute-sanitizer: the op over shapes that take every path, compared with the reference.

    compute-sanitizer --tool memcheck python benchmarks/gpu_check/sanitize.py cuda

Rows repeat with a little noise, so that no decision hangs on rounding and both must find the same groups. Set
``PYTORCH_NO_CUDA_MEMORY_CACHING=1``: from torch's pool, a tensor's end is in the middle of an allocation, and memcheck
sees no overrun. ``python benchmarks/gpu_check sanitizer`` does that.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import affinity_pool
from affinity_pool import reference

FLOAT32, FLOAT16, BFLOAT16 = torch.float32, torch.float16, torch.bfloat16


@dataclass(frozen=True)
class Shape:
    """A padded batch; packed, it is its rows side by side, with an empty sequence at either end."""

    batch: int
    width: int
    dim: int
    dtype: torch.dtype = BFLOAT16
    window: int = 3
    run: int = 4
    """Rows in a group."""
    lengths: tuple[int, ...] | None = None
    masked: bool = False
    left: bool = False
    shift: int = 0
    """Elements x starts after an aligned address."""


SHAPES = (
    Shape(1, 40, 4096),
    Shape(1, 40, 4096, FLOAT32, window=1),
    Shape(2, 40, 1024, FLOAT16, window=8, masked=True),
    Shape(2, 33, 100, FLOAT16, lengths=(33, 12), masked=True),
    Shape(3, 20, 1001, window=8, lengths=(20, 1, 7), left=True),
    Shape(4, 17, 33, FLOAT32, window=32, lengths=(0, 17, 1, 0), left=True, masked=True),
    Shape(5, 70, 64, window=32, run=40, lengths=(70, 0, 0, 65, 8)),
    Shape(1, 900, 32, run=900),
    Shape(2, 700, 24, FLOAT32, window=1, run=699, left=True),
    Shape(1, 24, 8192, FLOAT32),
    Shape(1, 9, 1, FLOAT32, run=9),
    Shape(2, 30, 256, shift=1),
    Shape(2, 30, 256, FLOAT32, shift=1, window=8),
    Shape(3, 0, 64),
)


def rows_of(shape: Shape) -> Tensor:
    generator = torch.Generator().manual_seed(shape.dim)
    count = shape.batch * shape.width
    base = torch.randn(count // shape.run + 1, shape.dim, generator=generator)
    noise = 0.1 * torch.randn(count, shape.dim, generator=generator)
    return (base[torch.arange(count) // shape.run] + noise).to(shape.dtype).view(shape.batch, shape.width, shape.dim)


def on_the_gpu(x: Tensor, shift: int) -> Tensor:
    """The same values ``shift`` elements after the beginning of an allocation."""
    buffer = torch.zeros(x.numel() + shift, dtype=x.dtype, device="cuda")
    buffer[shift:] = x.flatten().cuda()
    return buffer[shift:].view(x.shape)


def compare(shape: Shape, found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    values, *groups = (t.cpu() for t in found)
    if not all(map(torch.equal, groups, expected[1:])):
        raise SystemExit(f"{shape}: groups differ from the reference's")
    torch.testing.assert_close(values, expected[0], rtol=2 * torch.finfo(shape.dtype).eps, atol=1e-5)


def check(shape: Shape) -> None:
    x = rows_of(shape)
    mask = torch.arange(shape.batch * shape.width).remainder(11).ne(5).view(x.shape[:2]) if shape.masked else None
    lengths = None if shape.lengths is None else torch.tensor(shape.lengths, dtype=torch.int32)
    there = on_the_gpu(x, shape.shift)
    mask_there, lengths_there = (None if t is None else t.cuda() for t in (mask, lengths))
    compare(
        shape,
        affinity_pool.pool_padded(
            there, lengths_there, mergeable=mask_there, window=shape.window, left_padded=shape.left
        ),
        reference.pool_padded(x, lengths, mergeable=mask, window=shape.window, left_padded=shape.left),
    )
    bounds = torch.arange(shape.batch + 1, dtype=torch.int32) * shape.width
    bounds = torch.cat([bounds[:1], bounds, bounds[-1:]])
    mask, mask_there = (None if t is None else t.flatten() for t in (mask, mask_there))
    compare(
        shape,
        affinity_pool.pool(there.flatten(0, 1), bounds.cuda(), mergeable=mask_there, window=shape.window),
        reference.pool(x.flatten(0, 1), bounds, mergeable=mask, window=shape.window),
    )


def garbage() -> None:
    """Bounds outside the tensors are clamped in the kernel; what comes of them is nobody's, where it lies is."""
    x = rows_of(Shape(4, 30, 128)).cuda()
    for lengths in ([-1, 31, 2**31 - 1, -(2**31)], [1000] * 4):
        for left in (False, True):
            affinity_pool.pool_padded(x, torch.tensor(lengths, dtype=torch.int32).cuda(), left_padded=left)
    for bounds in ([0, 200, 100, 120], [-5, 7, 3, 2**31 - 1], [120, 0, 120, 0]):
        affinity_pool.pool(x.flatten(0, 1), torch.tensor(bounds, dtype=torch.int32).cuda())


def main() -> None:
    with affinity_pool.use(sys.argv[1]):
        for shape in SHAPES:
            check(shape)
        garbage()
    torch.cuda.synchronize()
    print(f"{sys.argv[1]}: {len(SHAPES)} shapes as the reference has them, and garbage bounds")


if __name__ == "__main__":
    main()
