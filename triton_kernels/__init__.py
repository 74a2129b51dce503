"""The ops in Triton, for GPUs whose install has no compiled kernel: AMD's, and NVIDIA's where there was no nvcc.

Three launches, in the order of the data. :mod:`.nearest_match` reads every row and leaves k(t), a byte a row;
:mod:`.scan` turns the bytes into groups, and takes one launch more where a sequence has more than 16384 rows;
:mod:`.means` reads every row again and writes the groups. Between two of them every program must have finished, for
what one needs may come from any other of its sequence. To wait for that inside a kernel, as the CUDA kernel does, takes
programs that are sure to make progress beside each other, which Triton does not promise, and counters that start at
zero, which would be a launch of their own. To scan the whole sequence again in each of the thousand programs of its
means takes microseconds a program, where a launch takes two once.

If a number of rows is promised, two launches take the place of the first, a threshold's: :mod:`.links` reads every row
and leaves its cosine to the row before, and :mod:`.select` tells which of a run are the weakest, for which it needs
them all. It writes bytes that are :mod:`.nearest_match`'s, so groups are made and averaged by the same two.

Importing this package imports no triton; the first call does. The kernels have run in Triton's interpreter and have
been compiled for sm_80, sm_90 and gfx942, but they have not run on a GPU: what is said of time here is computed.
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


def pool_to(
    x: Tensor,
    cu_seqlens: Tensor | None,
    mergeable: Tensor | None,
    share: float,
    rows: list[int] | None = None,
    rows_tensor: Tensor | None = None,
) -> Outputs:
    """``affinity_pool::pool_to``, arguments checked by the caller. Waits for the device once, unless the host knows M.

    It does from ``rows``, and from the share of one run. ``rows`` that are all alike need no memory there; others are
    copied to it, which a CUDA graph could not repeat.
    """
    from . import launches

    return launches.pool_to(x, cu_seqlens, mergeable, share, rows, rows_tensor)


def pool_padded_to(
    x: Tensor,
    lengths: Tensor | None,
    mergeable: Tensor | None,
    share: float,
    rows: list[int] | None = None,
    rows_tensor: Tensor | None = None,
    left_padded: bool = False,
) -> Outputs:
    """``affinity_pool::pool_padded_to``, arguments checked by the caller. Never waits for the device."""
    from . import launches

    return launches.pool_padded_to(x, lengths, mergeable, share, rows, rows_tensor, left_padded)
