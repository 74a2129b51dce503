"""The op in Triton, for GPUs whose install has no compiled kernels: AMD's, and NVIDIA's without nvcc.

Three launches, in the order of the data: :mod:`.nearest_match` reads every row and leaves a byte a row, k(t),
:mod:`.scan` turns the bytes into groups, :mod:`.means` reads every row again and writes the groups. What stands between
two of them is a point where every program has to have finished: a group may start a thousand rows before the tile that
closes it. One launch would have to wait inside a kernel, and Triton promises no program that another one makes progress
(the CUDA kernel waits, on tickets and flags it can order). Two launches would do if each program of the means scanned
its whole sequence for its group: 1500 bytes and 4 us for every one of a thousand programs, where a launch is 2 us once.

Importing this package imports no triton; calling a kernel does.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]

OLDEST = (3, 4)


def missing() -> str | None:
    """Why these kernels cannot serve here, in words, or None if they can. Imports triton only if there is a GPU."""
    if not torch.cuda.is_available():
        return "no CUDA or ROCm device here"
    if find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    try:
        from triton import __version__ as version
    except ImportError as error:
        return f"triton is installed, but does not import: {error}"
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        return f"triton {version} is too old: {OLDEST[0]}.{OLDEST[1]} or newer is needed"
    return None


def pool(x: Tensor, cu_seqlens: Tensor | None, mergeable: Tensor | None, threshold: float, window: int) -> Outputs:
    """``affinity_pool::pool``, arguments checked by the caller. Waits for the device once, to learn M."""
    from . import launches

    return launches.pool(x, cu_seqlens, mergeable, threshold, window)


def pool_padded(
    x: Tensor,
    lengths: Tensor | None,
    mergeable: Tensor | None,
    threshold: float,
    window: int,
    left_padded: bool = False,
) -> Outputs:
    """``affinity_pool::pool_padded``, arguments checked by the caller. Never waits for the device."""
    from . import launches

    return launches.pool_padded(x, lengths, mergeable, threshold, window, left_padded)
