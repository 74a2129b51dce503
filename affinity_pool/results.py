"""What the pooling functions return."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Pooled(NamedTuple):
    """Result of :func:`affinity_pool.pool` on ``N`` packed rows in ``B`` sequences."""

    values: Tensor
    """``[M, D]``, dtype of the input: the mean of each group, in order."""
    cu_seqlens: Tensor
    """``[B + 1]`` int32: sequence ``b`` owns rows ``cu_seqlens[b]`` to ``cu_seqlens[b + 1]`` of ``values``."""
    segment_ids: Tensor
    """``[N]`` int32: the row of ``values`` each input row went to."""
    counts: Tensor
    """``[M]`` int32: input rows in each group."""


class PooledPadded(NamedTuple):
    """Result of :func:`affinity_pool.pool_padded` on a batch ``[B, T, D]``."""

    values: Tensor
    """``[B, T, D]``, dtype of the input: group means on the padded side's opposite end, zeros elsewhere."""
    lengths: Tensor
    """``[B]`` int32: groups of each sequence."""
    segment_ids: Tensor
    """``[B, T]`` int32: the column of ``values`` each input row went to, -1 in padding."""
    counts: Tensor
    """``[B, T]`` int32: input rows in each group, 0 where there is no group."""


class Closed(NamedTuple):
    """The ``m`` groups that a call of :class:`affinity_pool.AffinityPooler` closed."""

    values: Tensor
    """``[m, D]``, dtype of the stream: the mean of each group, in order."""
    counts: Tensor
    """``[m]`` int32: rows in each group."""
