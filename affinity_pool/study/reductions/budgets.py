"""Baselines that see a budget and nothing else: the whole recording is one unit for the paper's three operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...models import Reduction
from ..groups import Span
from .by_plan import by_row
from .plans import random_drop_plan, uniform_drop_plan, uniform_merge_plan


def uniform_drop(kept: Tensor) -> Reduction:
    """Keep ``kept[b]`` audio tokens of row ``b`` at equal strides.

    ``kept`` is as for :func:`affinity_pool.study.reductions.budgets.at_budget`.

    Example:
        >>> import torch
        >>> from affinity_pool import Site
        >>> from affinity_pool.study.reductions import uniform_drop
        >>> site = Site(4, reduction=uniform_drop(torch.tensor([2])))
        >>> site.reduce(torch.randn(1, 6, 8), None, None).lengths.tolist()
        [2]
    """
    return at_budget(kept, lambda row, tokens, keep: (tokens, uniform_drop_plan(_whole(tokens), [keep])))


def random_drop(kept: Tensor, seeds: Sequence[int]) -> Reduction:
    """Keep ``kept[b]`` audio tokens of row ``b`` drawn with ``seeds[b]``.

    ``kept`` is as for :func:`affinity_pool.study.reductions.budgets.at_budget`.

    Example:
        >>> import torch
        >>> from affinity_pool import Site
        >>> from affinity_pool.study.reductions import random_drop
        >>> site = Site(4, reduction=random_drop(torch.tensor([2]), [0]))
        >>> site.reduce(torch.randn(1, 6, 8), None, None).lengths.tolist()
        [2]
    """
    if len(seeds) != len(kept):
        raise ValueError(f"seeds must have one number for each row of kept, got {len(seeds)} for {len(kept)}")
    return at_budget(
        kept, lambda row, tokens, keep: (tokens, random_drop_plan([Span(0, len(tokens))], [keep], seeds[row]))
    )


def uniform_merge(kept: Tensor) -> Reduction:
    """Merge the audio tokens of row ``b`` into ``kept[b]`` bins of equal size.

    ``kept`` is as for :func:`affinity_pool.study.reductions.budgets.at_budget`.

    Example:
        >>> import torch
        >>> from affinity_pool import Site
        >>> from affinity_pool.study.reductions import uniform_merge
        >>> site = Site(4, reduction=uniform_merge(torch.tensor([2])))
        >>> site.reduce(torch.randn(1, 6, 8), None, None).lengths.tolist()
        [2]
    """
    return at_budget(kept, lambda row, tokens, keep: (tokens, uniform_merge_plan(_whole(tokens), [keep])))


def at_budget(kept: Tensor, reduce_row: Callable[[int, Tensor, int], tuple[Tensor, Tensor]]) -> Reduction:
    """A reduction told how many tokens a row keeps: 1 to the ``n`` it has, or 0 of none.

    Args:
        kept: ``[B]`` int64 or int32, on any device: audio tokens each row of the batch is to keep. A row with fewer
            keeps them all.
        reduce_row: of a row, its tokens ``[n, D]`` and the number to keep.

    Raises:
        TypeError, ValueError: ``kept`` is not such a tensor, or, at the call, is less than 1 for a row with audio.
    """
    if not isinstance(kept, Tensor) or kept.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"kept must be an int64 or int32 tensor, got {getattr(kept, 'dtype', type(kept).__name__)}")
    if kept.dim() != 1:
        raise ValueError(f"kept must have shape [B], got {list(kept.shape)}")
    budgets = kept.tolist()

    def one(row: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        if budgets[row] < 1 and len(tokens):
            raise ValueError(
                f"kept must be at least 1 for a row with audio, got kept[{row}] = {budgets[row]} of {len(tokens)}"
            )
        return reduce_row(row, tokens, min(budgets[row], len(tokens)))

    return by_row(one, rows=len(budgets))


def _whole(tokens: Tensor) -> list[Span]:
    """The recording as one unit."""
    return [Span(0, len(tokens))]
