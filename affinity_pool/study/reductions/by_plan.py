"""Carries plans out at a site: what drops and merges audio tokens in the form :func:`affinity_pool.patch` takes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...checks import check_index, check_mergeable, check_rows
from ...models import Reduction
from ...results import PooledPadded

RowReduction = Callable[[int, Tensor], tuple[Tensor, Tensor]]
"""Of row ``b`` and its audio tokens ``[n, D]``: the tokens, changed or not, and the plan to carry out on them."""


def planned(plan_of: Callable[[int, int], Tensor]) -> Reduction:
    """Ask ``plan_of(b, n)`` where the ``n`` audio tokens of row ``b`` go, and send them there.

    Args:
        plan_of: returns int64 ``[n]``, see :mod:`affinity_pool.study.reductions.plans`; on any device.

    Returns:
        A reduction. Means are summed in float64; a token alone is copied bit for bit, and so is text. A mean may span
        text, two clips of a prompt say: it stands where its first token stood. Gradients flow from the values. A call
        raises ValueError if a plan is not one for ``n`` tokens.

    Example:
        >>> import torch
        >>> from affinity_pool import Site
        >>> from affinity_pool.study.reductions import planned
        >>> pairs = Site(4, reduction=planned(lambda row, tokens: torch.arange(tokens) // 2))
        >>> pairs.reduce(torch.randn(1, 6, 8), None, None).counts.tolist()
        [[0, 0, 0, 2, 2, 2]]
    """
    return by_row(lambda row, tokens: (tokens, plan_of(row, len(tokens))))


def by_row(reduce_row: RowReduction, rows: int | None = None) -> Reduction:
    """As :func:`planned`, for plans that depend on the tokens or change them first.

    Args:
        reduce_row: called for each row of a batch.
        rows: the batch it is for; another is refused.
    """

    def reduce(
        x: Tensor, lengths: Tensor | None = None, mergeable: Tensor | None = None, *, left_padded: bool = True
    ) -> PooledPadded:
        check_rows(x, "[B, T, D]")
        check_index("lengths", lengths, x, size=x.shape[0])
        check_mergeable(mergeable, x)
        batch, width, _ = x.shape
        if rows is not None and batch != rows:
            raise ValueError(f"x must have the {rows} rows that budgets were given for, got {batch}")
        column = torch.arange(width, device=x.device).expand(batch, -1)
        valid = torch.ones_like(column, dtype=torch.bool)
        if lengths is not None:
            valid = column >= width - lengths[:, None] if left_padded else column < lengths[:, None]
        audio = valid if mergeable is None else valid & mergeable

        output = torch.full_like(column, -1)
        reduced = [x.new_empty(0, x.shape[2])]
        for row in range(batch):
            tokens, plan = reduce_row(row, x[row, audio[row]])
            _check_plan(plan, row, len(tokens))
            output[row, audio[row]] = plan.to(x.device)
            reduced.append(tokens)
        return _send(x.masked_scatter(audio.unsqueeze(-1), torch.cat(reduced)), valid, audio, output, left_padded)

    return reduce


def _check_plan(plan: Tensor, row: int, tokens: int) -> None:
    if plan.dtype != torch.int64 or plan.shape != (tokens,):
        raise ValueError(
            f"the plan of row {row} must be int64 [{tokens}], one entry for each of its audio tokens, "
            f"got {plan.dtype} {list(plan.shape)}"
        )
    if bool(((plan < -1) | (plan >= tokens)).any()):
        raise ValueError(f"the plan of row {row} must hold -1 to {tokens - 1}, got {int(plan.min())} to {plan.max()}")


def _send(x: Tensor, valid: Tensor, audio: Tensor, output: Tensor, left_padded: bool) -> PooledPadded:
    """Drop audio tokens whose ``output [B, T]`` is -1, merge those with one output; the others pass.

    A group's first token leads it: it stands for the group until the others are added to it.
    """
    batch, width, dim = x.shape
    column = torch.arange(width, device=x.device).expand(batch, -1)
    first = column.new_full((batch, width + 1), width).scatter_reduce_(1, output + 1, column, "amin")
    leader = torch.where(output >= 0, first.gather(1, output + 1), column)
    stays = valid & (~audio | (output >= 0))
    leads = stays & (leader == column)
    remaining = leads.sum(1, dtype=torch.int32)
    start = (width - remaining)[:, None] if left_padded else 0
    place = (leads.cumsum(1) - 1 + start).gather(1, leader)  # in the output, of the group of each token that stays

    values = torch.zeros_like(x)
    row = torch.arange(batch, device=x.device)[:, None].expand_as(column)
    values[row[leads], place[leads]] = x[leads]
    counts = torch.zeros_like(column)
    counts.index_put_((row[stays], place[stays]), counts.new_ones(()), accumulate=True)

    several = counts > 1
    joins = stays & several.gather(1, torch.where(stays, place, 0))
    group = (several.flatten().cumsum(0) - 1)[(row * width + place)[joins]]
    total = x.new_zeros(int(several.sum()), dim, dtype=torch.float64).index_add_(0, group, x[joins].double())
    values[several] = (total / counts[several].unsqueeze(1)).to(x.dtype)
    return PooledPadded(values, remaining, torch.where(stays, place, -1).int(), counts.int())
