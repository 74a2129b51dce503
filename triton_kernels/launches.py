"""The host's side: outputs and scratch, and three or four launches on the current stream of x's device."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..checks import check_sequences
from . import Outputs, means, nearest_match, scan

# What is to be fused is written as fma; the default differs between versions of Triton, and warns.
AS_WRITTEN = {"enable_fp_fusion": False}

MOST_INDICES = 2**31 - 2**10  # the kernels count rows and features in int32, and up to a tile beyond the last
MOST_PROGRAMS = 2**31 - 1
MOST_PROGRAMS_HIP = 2**23 - 1  # HIP counts the threads of a grid, 512 to a program, in 32 bits


def pool(x: Tensor, cu_seqlens: Tensor | None, mergeable: Tensor | None, threshold: float, window: int) -> Outputs:
    """See :func:`affinity_pool.triton_kernels.pool`."""
    rows, dim = x.shape
    _check_sizes(1, rows, dim)
    if cu_seqlens is not None:
        check_sequences(len(cu_seqlens), rows)
    values, counts = x.new_empty(rows, dim), x.new_empty(rows, dtype=torch.int32)
    segment_ids, cu_seqlens_out = counts.new_empty(rows), counts.new_empty(2 if cu_seqlens is None else len(cu_seqlens))
    if rows == 0:
        return values, cu_seqlens_out.zero_(), segment_ids, counts
    groups = counts.new_empty(1)
    outputs = (values, groups, segment_ids, counts)
    _launch(x.unsqueeze(0), mergeable, threshold, window, outputs, cu_seqlens=cu_seqlens, cu_seqlens_out=cu_seqlens_out)
    kept = int(groups.item())  # the one wait for the device
    return values[:kept], cu_seqlens_out, segment_ids, counts[:kept]


def pool_padded(
    x: Tensor, lengths: Tensor | None, mergeable: Tensor | None, threshold: float, window: int, left_padded: bool
) -> Outputs:
    """See :func:`affinity_pool.triton_kernels.pool_padded`."""
    batch, rows, dim = x.shape
    _check_sizes(batch, rows, dim)
    values = torch.empty_like(x, memory_format=torch.contiguous_format)
    groups, counts = x.new_empty(batch, dtype=torch.int32), x.new_empty(batch, rows, dtype=torch.int32)
    outputs = (values, groups, torch.empty_like(counts), counts)
    if counts.numel() == 0:
        groups.zero_()
    else:
        _launch(x, mergeable, threshold, window, outputs, lengths=lengths, left_padded=left_padded)
    return outputs


def _check_sizes(batch: int, rows: int, dim: int) -> None:
    for size, of_what in ((batch * rows, "rows"), (dim, "features")):
        if size > MOST_INDICES:
            raise ValueError(f"x must have at most 2^31 - 2^10 {of_what}, got {size}")
    programs = batch * rows * triton.cdiv(dim, means.BLOCK.value)
    most = MOST_PROGRAMS if torch.version.hip is None else MOST_PROGRAMS_HIP
    if programs > most:
        raise ValueError(f"x must have at most {most} blocks of {means.BLOCK.value} features, got {programs}")


def _launch(
    x: Tensor,
    mergeable: Tensor | None,
    threshold: float,
    window: int,
    outputs: Outputs,
    *,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_out: Tensor | None = None,
    lengths: Tensor | None = None,
    left_padded: bool = False,
) -> None:
    """Fill the outputs of a padded batch, or of packed rows as the one sequence of a batch, if cu_seqlens_out is given.

    Groups are counted in ``outputs[1]``, one number a sequence of the batch.
    """
    values, groups, segment_ids, counts = outputs
    x = x if x.stride(2) == 1 else x.contiguous()
    mergeable, lengths, cu_seqlens = (
        None if tensor is None else tensor.contiguous() for tensor in (mergeable, lengths, cu_seqlens)
    )
    batch, rows, dim = x.shape
    nearest = x.new_empty(batch, rows, dtype=torch.uint8)
    starts = groups.new_empty(batch, rows + 1)
    run_rows = scan.rows_of_run(rows)
    chunks = triton.cdiv(rows, run_rows * scan.RUNS.value)
    maps = None if chunks == 1 else groups.new_empty(batch, chunks, scan.states_of(window))
    bounds = 0 if cu_seqlens_out is None else cu_seqlens_out.shape[0]
    strides = x.stride()[:2]

    with torch.cuda.device_of(x):
        nearest_match.nearest_match[(batch * triton.cdiv(rows, nearest_match.ROWS.value),)](
            x, mergeable, cu_seqlens, lengths, nearest, rows, bounds, dim, *strides, threshold, window,
            left_padded, *nearest_match.lags_and_chunks(window, x.itemsize),
            num_warps=nearest_match.NUM_WARPS, **AS_WRITTEN,
        )  # fmt: skip
        if maps is not None:
            scan.maps_of_chunks[(batch, chunks)](
                nearest, lengths, maps, rows, run_rows, window,
                left_padded, scan.states_of(window), num_warps=scan.NUM_WARPS, **AS_WRITTEN,
            )  # fmt: skip
        scan.scan[(batch, chunks)](
            nearest, lengths, maps, segment_ids, starts, groups, rows, run_rows, window,
            left_padded, scan.states_of(window), num_warps=scan.NUM_WARPS, **AS_WRITTEN,
        )  # fmt: skip
        means.means[(batch * rows * triton.cdiv(dim, means.BLOCK.value),)](
            x, starts, groups, segment_ids, cu_seqlens, values, counts, cu_seqlens_out, rows, bounds, dim, *strides,
            left_padded, num_warps=means.NUM_WARPS, **AS_WRITTEN,
        )  # fmt: skip
