"""The host's side: outputs and scratch, and three to five launches on the current stream of x's device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from ..checks import check_sequences
from ..reference import rows_left
from . import Outputs, links, means, nearest_match, scan, select

# What is to be fused is written as fma; the default differs between versions of Triton, and warns.
AS_WRITTEN = {"enable_fp_fusion": False}

MOST_INDICES = 2**31 - 2**10  # the kernels count rows and features in int32, and up to a tile beyond the last
MOST_PROGRAMS = 2**31 - 1
MOST_PROGRAMS_HIP = 2**23 - 1  # HIP counts the threads of a grid, 512 to a program, in 32 bits


def pool(x: Tensor, cu_seqlens: Tensor | None, mergeable: Tensor | None, threshold: float, window: int) -> Outputs:
    """See :func:`affinity_pool.triton_kernels.pool`."""
    _check_packed(x, cu_seqlens)
    outputs = _packed_outputs(x, cu_seqlens, x.shape[0])
    if x.shape[0] == 0:
        return _no_groups(outputs)
    sequences = Sequences(x.unsqueeze(0), mergeable, cu_seqlens=cu_seqlens)
    with torch.cuda.device_of(x):
        groups = _write_groups(sequences, _matched(sequences, threshold, window), window, outputs)
    return _front(outputs, groups)


def pool_padded(
    x: Tensor, lengths: Tensor | None, mergeable: Tensor | None, threshold: float, window: int, left_padded: bool
) -> Outputs:
    """See :func:`affinity_pool.triton_kernels.pool_padded`."""
    _check_sizes(*x.shape)
    outputs = _padded_outputs(x)
    if outputs[3].numel() == 0:
        return _no_groups(outputs)
    sequences = Sequences(x, mergeable, lengths=lengths, left_padded=left_padded)
    with torch.cuda.device_of(x):
        _write_groups(sequences, _matched(sequences, threshold, window), window, outputs)
    return outputs


def pool_to(
    x: Tensor,
    cu_seqlens: Tensor | None,
    mergeable: Tensor | None,
    share: float,
    rows: list[int] | None,
    rows_tensor: Tensor | None,
) -> Outputs:
    """See :func:`affinity_pool.triton_kernels.pool_to`."""
    _check_packed(x, cu_seqlens)
    batch = 1 if cu_seqlens is None else len(cu_seqlens) - 1
    if all(given is None for given in (rows, rows_tensor, cu_seqlens, mergeable)):
        rows = [rows_left(x.shape[0], share)]  # of one run the host can tell
    promise = _promise(x, batch, share, rows, rows_tensor)
    places = x.shape[0] if rows is None else rows[0] * batch if len(rows) == 1 else sum(rows)
    _check_sizes(1, places, x.shape[1])
    outputs = _packed_outputs(x, cu_seqlens, places)
    if 0 in (x.shape[0], places):
        return _no_groups(outputs)
    sequences = Sequences(x.unsqueeze(0), mergeable, cu_seqlens=cu_seqlens)
    with torch.cuda.device_of(x):
        groups = _write_groups(sequences, _selected(sequences, promise), 1, outputs, promised=rows is not None)
    return _front(outputs, groups) if rows is None else outputs


def pool_padded_to(
    x: Tensor,
    lengths: Tensor | None,
    mergeable: Tensor | None,
    share: float,
    rows: list[int] | None,
    rows_tensor: Tensor | None,
    left_padded: bool,
) -> Outputs:
    """See :func:`affinity_pool.triton_kernels.pool_padded_to`."""
    _check_sizes(*x.shape)
    promise = _promise(x, x.shape[0], share, rows, rows_tensor)
    outputs = _padded_outputs(x)
    if outputs[3].numel() == 0:
        return _no_groups(outputs)
    sequences = Sequences(x, mergeable, lengths=lengths, left_padded=left_padded)
    with torch.cuda.device_of(x):
        _write_groups(sequences, _selected(sequences, promise), 1, outputs)
    return outputs


def _check_packed(x: Tensor, cu_seqlens: Tensor | None) -> None:
    _check_sizes(1, *x.shape)
    if cu_seqlens is not None:
        check_sequences(len(cu_seqlens), x.shape[0])


def _check_sizes(batch: int, rows: int, dim: int) -> None:
    for size, of_what in ((batch * rows, "rows"), (dim, "features")):
        if size > MOST_INDICES:
            raise ValueError(f"x must have at most 2^31 - 2^10 {of_what}, got {size}")
    programs = batch * rows * triton.cdiv(dim, means.BLOCK.value)
    most = MOST_PROGRAMS if torch.version.hip is None else MOST_PROGRAMS_HIP
    if programs > most:
        raise ValueError(f"x must have at most {most} blocks of {means.BLOCK.value} features, got {programs}")


def _packed_outputs(x: Tensor, cu_seqlens: Tensor | None, places: int) -> Outputs:
    """With room for so many groups."""
    values, counts = x.new_empty(places, x.shape[1]), x.new_empty(places, dtype=torch.int32)
    bounds = 2 if cu_seqlens is None else len(cu_seqlens)
    return values, counts.new_empty(bounds), counts.new_empty(x.shape[0]), counts


def _padded_outputs(x: Tensor) -> Outputs:
    values = torch.empty_like(x, memory_format=torch.contiguous_format)
    groups, counts = x.new_empty(x.shape[0], dtype=torch.int32), x.new_empty(x.shape[:2], dtype=torch.int32)
    return values, groups, torch.empty_like(counts), counts


def _no_groups(outputs: Outputs) -> Outputs:
    """Of no rows, or where there is room for none."""
    values, bounds, segment_ids, counts = outputs
    return values.zero_(), bounds.zero_(), segment_ids.fill_(-1), counts.zero_()


def _front(outputs: Outputs, groups: Tensor) -> Outputs:
    """Of packed sequences, what holds groups."""
    values, bounds, segment_ids, counts = outputs
    kept = int(groups.item())  # the one wait for the device
    return values[:kept], bounds, segment_ids, counts[:kept]


@dataclass
class Sequences:
    """A padded batch ``[B, T, D]``, or packed rows ``[1, N, D]`` as its one sequence, laid out for the kernels."""

    x: Tensor
    mergeable: Tensor | None
    cu_seqlens: Tensor | None = None
    lengths: Tensor | None = None
    left_padded: bool = False

    def __post_init__(self) -> None:
        self.x = self.x if self.x.stride(2) == 1 else self.x.contiguous()
        self.mergeable, self.cu_seqlens, self.lengths = (
            None if tensor is None else tensor.contiguous()
            for tensor in (self.mergeable, self.cu_seqlens, self.lengths)
        )

    @property
    def bounds(self) -> int:
        return 0 if self.cu_seqlens is None else len(self.cu_seqlens)


@dataclass(frozen=True)
class Promise:
    """How many rows are left: of each run a share, or of all sequences alike so many, or of each."""

    share: float = 1.0
    rows: int = 0
    each: Tensor | None = None


def _promise(x: Tensor, batch: int, share: float, rows: list[int] | None, rows_tensor: Tensor | None) -> Promise:
    if rows is not None and len(rows) not in (1, batch):
        raise ValueError(f"rows must be one int, or one for each of the {batch} sequences of x, got {len(rows)}")
    if rows_tensor is not None:
        if len(rows_tensor) != batch:
            raise ValueError(
                f"rows_tensor must have one entry for each of the {batch} sequences of x, got {len(rows_tensor)}"
            )
        return Promise(each=rows_tensor.contiguous())
    if not rows:
        return Promise(share)
    if min(rows) == max(rows):
        return Promise(rows=max(rows[0], 1))
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        raise ValueError(
            "rows that differ must be an int32 tensor on the device of x while a CUDA graph is captured: "
            "a replay would copy a list from memory that is gone by then"
        )
    return Promise(each=torch.tensor(rows, dtype=torch.int32).to(x.device, non_blocking=True))


def _matched(sequences: Sequences, threshold: float, window: int) -> Tensor:
    """How far back the nearest match of each row is, a byte a row."""
    x = sequences.x
    batch, rows, dim = x.shape
    nearest = x.new_empty(batch, rows, dtype=torch.uint8)
    nearest_match.nearest_match[(batch * triton.cdiv(rows, nearest_match.ROWS.value),)](
        x, sequences.mergeable, sequences.cu_seqlens, sequences.lengths, nearest,
        rows, sequences.bounds, dim, *x.stride()[:2], threshold, window,
        sequences.left_padded, *nearest_match.lags_and_chunks(window, x.itemsize),
        num_warps=nearest_match.NUM_WARPS, **AS_WRITTEN,
    )  # fmt: skip
    return nearest


def _selected(sequences: Sequences, promise: Promise) -> Tensor:
    """The same at window 1, as it is at the threshold that leaves as many rows of each run as were promised."""
    x = sequences.x
    batch, rows, dim = x.shape
    nearest, words = (x.new_empty(batch, rows, dtype=dtype) for dtype in (torch.uint8, torch.int64))
    _, chunks = nearest_match.lags_and_chunks(1, x.itemsize)
    links.links[(batch * triton.cdiv(rows, nearest_match.ROWS.value),)](
        x, sequences.mergeable, sequences.cu_seqlens, sequences.lengths, promise.each, words,
        rows, sequences.bounds, dim, *x.stride()[:2], promise.rows,
        sequences.left_padded, chunks, num_warps=nearest_match.NUM_WARPS, **AS_WRITTEN,
    )  # fmt: skip
    select.select[(triton.cdiv(batch * rows, select.STRETCH.value),)](
        words, nearest, batch * rows, promise.share, num_warps=select.NUM_WARPS, **AS_WRITTEN
    )
    return nearest


def _write_groups(
    sequences: Sequences, nearest: Tensor, window: int, outputs: Outputs, promised: bool = False
) -> Tensor:
    """Fill the outputs; return the number of groups of each sequence of the batch, which is one if rows are packed."""
    values, bounds_out, segment_ids, counts = outputs
    x, lengths, left = sequences.x, sequences.lengths, sequences.left_padded
    batch, rows, dim = x.shape
    places = counts.shape[-1]
    is_packed = counts.dim() == 1
    groups = counts.new_empty(1) if is_packed else bounds_out
    starts = counts.new_empty(batch, rows + 1)
    run_rows, states = scan.rows_of_run(rows), scan.states_of(window)
    chunks = triton.cdiv(rows, run_rows * scan.RUNS.value)
    maps = None if chunks == 1 else counts.new_empty(batch, chunks, states)
    if maps is not None:
        scan.maps_of_chunks[(batch, chunks)](
            nearest, lengths, maps, rows, run_rows, window, left, states, num_warps=scan.NUM_WARPS, **AS_WRITTEN
        )
    scan.scan[(batch, chunks)](
        nearest, lengths, maps, segment_ids, starts, groups, rows, places, run_rows, window,
        left, states, num_warps=scan.NUM_WARPS, **AS_WRITTEN,
    )  # fmt: skip
    means.means[(batch * places * triton.cdiv(dim, means.BLOCK.value),)](
        x, starts, groups, segment_ids, sequences.cu_seqlens, values, counts, bounds_out if is_packed else None,
        rows, places, sequences.bounds, dim, *x.stride()[:2],
        left, promised, num_warps=means.NUM_WARPS, **AS_WRITTEN,
    )  # fmt: skip
    return groups
