"""Linear interpolation: a baseline that resamples a recording's audio embeddings as if they were a signal."""

from __future__ import annotations

import torch
from torch import Tensor

from ...models import Reduction
from .budgets import at_budget


def interpolate(kept: Tensor) -> Reduction:
    """Resample the ``n`` audio tokens of row ``b`` to ``kept[b]``, evenly from the first token to the last.

    A single token is taken from the middle. An output between two tokens mixes them in float64 and takes the place of
    the left one; the tokens whose place none takes are dropped. An output on a token is that token, bit for bit.
    ``kept`` is as for :func:`affinity_pool.study.reductions.budgets.at_budget`.

    Example:
        >>> import torch
        >>> from affinity_pool import Site
        >>> from affinity_pool.study.reductions import interpolate
        >>> site = Site(4, reduction=interpolate(torch.tensor([2])))
        >>> site.reduce(torch.randn(1, 6, 8), None, None).lengths.tolist()
        [2]
    """
    return at_budget(kept, lambda row, tokens, keep: _resample(tokens, keep))


def _resample(tokens: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    if keep == 0:
        return tokens, torch.empty(0, dtype=torch.int64)
    # Places are multiples of (n - 1) / (keep - 1); in whole numbers, none lands beside the token it should be on.
    last = len(tokens) - 1
    times, steps = (torch.arange(keep), keep - 1) if keep > 1 else (torch.tensor([1]), 2)
    left, beyond = (times * last) // steps, (times * last) % steps
    plan = torch.full((len(tokens),), -1)
    plan[left] = torch.arange(keep)

    left, beyond = left.to(tokens.device), beyond.to(tokens.device)
    between = beyond > 0
    start, end = tokens[left[between]].double(), tokens[left[between] + 1].double()
    mixed = start.lerp(end, (beyond[between].double() / steps).unsqueeze(1))
    return tokens.index_copy(0, left[between], mixed.to(tokens.dtype)), plan
