"""The public functions: arguments are checked here, the work is one call of the custom op."""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks
from .results import Pooled, PooledPadded


def pool(
    x: Tensor,
    cu_seqlens: Tensor | None = None,
    *,
    mergeable: Tensor | None = None,
    threshold: float = 0.8,
    window: int = 3,
) -> Pooled:
    """Affinity Pooling of packed, variable-length sequences (arXiv 2604.06871, section 4).

    A row joins the open group if its largest cosine similarity to the latest ``window`` rows of that group is at least
    ``threshold``; otherwise the group is closed, its mean becomes one output row, and the row opens a new group.

    Args:
        x: ``[N, D]`` float32, float16 or bfloat16: the rows of all sequences side by side.
        cu_seqlens: ``[B + 1]`` int32, rising from 0 to ``N``: sequence ``b`` owns rows ``cu_seqlens[b]`` to
            ``cu_seqlens[b + 1]``. None means one sequence.
        mergeable: ``[N]`` bool. Rows marked False (text) pass through bit for bit, and no group spans one. None means
            every row may merge.
        threshold: cosine similarity. Above 1 nothing merges; at -1 or below everything finite does.
        window: 1..32, how many rows back inside the open group a row is compared with.

    Returns:
        :class:`Pooled` ``(values [M, D], cu_seqlens [B + 1], segment_ids [N], counts [M])``. Derivatives pass between
        ``x`` and ``values``, backward and forward, under ``torch.func`` as well: a row receives its share of its
        group's gradient, a group the mean of its rows' tangents; the boundaries carry none. ``values`` is the front of
        a buffer of ``N`` rows, since ``M`` is known last: ``clone()`` it to keep it for long.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range; the message names it.
        RuntimeError: on CPU, the entries of ``cu_seqlens`` do not rise from 0 to ``N`` (on CUDA they are clamped).
        NotImplementedError: ``vmap`` over the arguments, or ``torch.func.functionalize``.

    A row with a NaN, an Inf or a squared norm beyond float32 matches nothing and stays alone. A mean is summed in
    float32 and rounded once; a group of one is copied. Results do not depend on batch mates, threads or run.
    """
    checks.check_pool(x, cu_seqlens, mergeable, threshold, window)
    return Pooled(*torch.ops.affinity_pool.pool.default(x, cu_seqlens, mergeable, threshold, window))


def pool_padded(
    x: Tensor,
    lengths: Tensor | None = None,
    *,
    mergeable: Tensor | None = None,
    threshold: float = 0.8,
    window: int = 3,
    left_padded: bool = False,
) -> PooledPadded:
    """Affinity Pooling of a padded batch: no shape depends on the data, so nothing waits for a device.

    It can be captured in a CUDA graph. Call it once before the first capture: kernels are loaded by their first call.

    Args:
        x: ``[B, T, D]`` float32, float16 or bfloat16.
        lengths: ``[B]`` int32, rows of each sequence that are not padding, in 0..T. None means all ``T``.
        mergeable: ``[B, T]`` bool; see :func:`pool`.
        threshold: cosine similarity; see :func:`pool`.
        window: 1..32; see :func:`pool`.
        left_padded: the valid rows are the last ``lengths`` of each sequence, as in a ``generate()`` batch, and so are
            the groups in ``values``: dropping padding is one narrow, from the left.

    Returns:
        :class:`PooledPadded` ``(values [B, T, D], lengths [B], segment_ids [B, T], counts [B, T])``. ``values`` and
        ``counts`` are zero, ``segment_ids`` -1, where there is no group or row.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range; the message names it.
        RuntimeError: on CPU, an entry of ``lengths`` is outside 0..T (on CUDA it is clamped).
    """
    checks.check_pool_padded(x, lengths, mergeable, threshold, window)
    return PooledPadded(
        *torch.ops.affinity_pool.pool_padded.default(x, lengths, mergeable, threshold, window, left_padded)
    )
