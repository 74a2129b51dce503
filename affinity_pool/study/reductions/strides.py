"""Reductions that stand in for Affinity Pooling at a site, at a token budget of their own: what it has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from ...models import Reduce
from ...results import PooledPadded


def uniform_drop(kept: Tensor) -> Reduce:
    """The paper's Uniform Drop: keep ``kept[b]`` of the mergeable rows of sequence ``b`` at equal strides.

    Args:
        kept: ``[B]`` int, mergeable rows to keep; a sequence with fewer keeps them all.
    """

    def reduce(
        x: Tensor,
        lengths: Tensor | None = None,
        *,
        mergeable: Tensor | None = None,
        threshold: float = 0.8,
        window: int = 3,
        left_padded: bool = False,
    ) -> PooledPadded:
        batch, width, _ = x.shape
        column = torch.arange(width, device=x.device).expand(batch, -1)
        valid = torch.ones_like(column, dtype=torch.bool)
        if lengths is not None:
            valid = column >= width - lengths[:, None] if left_padded else column < lengths[:, None]
        may_go = valid if mergeable is None else valid & mergeable
        total = may_go.sum(1, keepdim=True).clamp(min=1)
        budget = kept.to(x.device)[:, None].minimum(total)
        rank = may_go.cumsum(1) - 1
        chosen = (rank + 1) * budget // total > rank * budget // total  # true for `budget` of `total` ranks
        stays = valid & (chosen | ~may_go)

        order = torch.sort(stays if left_padded else ~stays, dim=1, stable=True).indices
        there = stays.gather(1, order)
        values = x.gather(1, order.unsqueeze(-1).expand_as(x)).masked_fill(~there.unsqueeze(-1), 0)
        remaining = stays.sum(1, dtype=torch.int32)
        first = (width - remaining)[:, None] if left_padded else 0
        segment_ids = torch.where(stays, stays.cumsum(1) - 1 + first, -1).int()
        return PooledPadded(values, remaining, segment_ids, there.int())

    return reduce
