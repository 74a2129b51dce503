"""The public functions: arguments are checked here, the work is one call of the custom op."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import checks
from ._ops import ops
from .checks import Keep
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

    Example:
        >>> import torch
        >>> from affinity_pool import pool
        >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        >>> pooled = pool(x, threshold=0.8)
        >>> pooled.values
        tensor([[0.9500, 0.0500],
                [0.0500, 0.9500]])
        >>> pooled.segment_ids.tolist(), pooled.counts.tolist()
        ([0, 0, 1, 1], [2, 2])

        Two sequences, of one row and of three:

        >>> pool(x, torch.tensor([0, 1, 4], dtype=torch.int32)).cu_seqlens.tolist()
        [0, 1, 3]
    """
    checks.check_pool(x, cu_seqlens, mergeable, threshold, window)
    return Pooled(*ops.pool.default(x, cu_seqlens, mergeable, threshold, window))


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
        NotImplementedError: ``vmap`` over the arguments, or ``torch.func.functionalize``.

    Example:
        >>> import torch
        >>> from affinity_pool import pool_padded
        >>> x = torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]])
        >>> pooled = pool_padded(x, torch.tensor([3, 1], dtype=torch.int32))
        >>> pooled.lengths.tolist()
        [2, 1]
        >>> pooled.counts.tolist()
        [[2, 1, 0], [1, 0, 0]]
    """
    checks.check_pool_padded(x, lengths, mergeable, threshold, window)
    return PooledPadded(*ops.pool_padded.default(x, lengths, mergeable, threshold, window, left_padded))


def pool_to(x: Tensor, keep: Keep, cu_seqlens: Tensor | None = None, *, mergeable: Tensor | None = None) -> Pooled:
    """Affinity Pooling of packed sequences to a number of rows that is known beforehand.

    For whoever must say how many rows there will be before the data exist: serving engines, static shapes, fixed
    budgets. It is :func:`pool` at window 1 and the threshold that leaves as many. Of a run's rows but the first, those
    with the weakest links begin groups, a link being the cosine to the row before; of equal links the earliest. A
    run is a stretch of mergeable rows of one sequence. Larger windows do not apply, nor does streaming: which links are
    the weakest shows when the last row is there.

    Args:
        x: ``[N, D]`` float32, float16 or bfloat16: the rows of all sequences side by side.
        keep: a float is a share in (0, 1]: each run of ``n`` rows becomes :func:`rows_left` ``(n, keep)``. An int,
            ints (a list, one for each sequence) or an int32 tensor ``[B]`` on the device of ``x`` are numbers of rows,
            1 to the length of the sequence and 0 of an empty one. So ``1.0`` keeps every row and ``1`` one. In a
            compiled graph ints may be sizes that are not known yet, and a share is a constant: another compiles anew.
        cu_seqlens: ``[B + 1]`` int32, as in :func:`pool`. None means one sequence.
        mergeable: ``[N]`` bool: rows marked False pass through bit for bit and end a run; for shares only.

    Returns:
        :class:`Pooled` ``(values [M, D], cu_seqlens [B + 1], segment_ids [N], counts [M])``, with derivatives as in
        :func:`pool`. With counts as ints ``M`` is their sum, with a share of one sequence without ``mergeable`` it is
        :func:`rows_left` too: then nothing waits for a device, and the call can be captured in a CUDA graph, but for
        ints that differ: they would be read from the host again (give a tensor to :func:`pool_padded_to`).

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range; the message names it.
        RuntimeError: on CPU, the entries of ``cu_seqlens`` or ``keep`` make no sense (on CUDA they are clamped).
        NotImplementedError: ``vmap`` over the arguments, or ``torch.func.functionalize``.

    A row with a NaN, an Inf or a squared norm beyond float32 has the weakest links there are: it stays alone as long as
    the count allows. Groups for a smaller count only ever join groups for a larger one.

    Example:
        >>> import torch
        >>> from affinity_pool import pool_to
        >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.4, 0.9]])
        >>> pool_to(x, 0.5).segment_ids.tolist()
        [0, 0, 1, 1]
        >>> pool_to(x, 3).segment_ids.tolist()
        [0, 0, 1, 2]
    """
    checks.check_pool_to(x, keep, cu_seqlens, mergeable)
    return Pooled(*ops.pool_to.default(x, cu_seqlens, mergeable, *_promise(keep)))


def pool_padded_to(
    x: Tensor,
    keep: Keep,
    lengths: Tensor | None = None,
    *,
    mergeable: Tensor | None = None,
    left_padded: bool = False,
) -> PooledPadded:
    """Affinity Pooling of a padded batch to a number of rows that is known beforehand; nothing waits for a device.

    It can be captured in a CUDA graph, ``keep`` a tensor whose contents change between replays, if you like.

    Args:
        x: ``[B, T, D]`` float32, float16 or bfloat16.
        keep: a share of each run, or rows of each sequence; see :func:`pool_to`.
        lengths: ``[B]`` int32, rows of each sequence that are not padding, in 0..T. None means all ``T``.
        mergeable: ``[B, T]`` bool, for shares only; see :func:`pool_to`.
        left_padded: see :func:`pool_padded`.

    Returns:
        :class:`PooledPadded` ``(values [B, T, D], lengths [B], segment_ids [B, T], counts [B, T])``, as
        :func:`pool_padded` has it.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range; the message names it.
        RuntimeError: on CPU, an entry of ``lengths`` or ``keep`` makes no sense (on CUDA it is clamped).
        NotImplementedError: ``vmap`` over the arguments, or ``torch.func.functionalize``.

    Example:
        >>> import torch
        >>> from affinity_pool import pool_padded_to
        >>> x = torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.4, 0.9]]])
        >>> pool_padded_to(x, 0.5, left_padded=True).segment_ids.tolist()
        [[2, 2, 3, 3]]
    """
    checks.check_pool_padded_to(x, keep, lengths, mergeable)
    return PooledPadded(*ops.pool_padded_to.default(x, lengths, mergeable, *_promise(keep), left_padded))


def _promise(keep: Keep) -> tuple[float, list[int] | None, Tensor | None]:
    """What the ops take for ``keep``: share, rows, rows_tensor."""
    if isinstance(keep, Tensor):
        return 1.0, None, keep
    if isinstance(keep, float):
        return keep, None, None
    return 1.0, list(keep) if isinstance(keep, Sequence) else [keep], None
