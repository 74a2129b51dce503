"""Bipartite merging after ToMe (Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, arXiv 2210.09461).

ToMe takes r tokens out of every layer of a vision transformer, comparing attention keys. Here it is a baseline for a
reduction at one site, so the hidden states are compared, and rounds follow each other until the budget is met.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...models import Reduction
from .budgets import at_budget


def bipartite_merge(kept: Tensor) -> Reduction:
    """Merge the audio tokens of row ``b`` into ``kept[b]``, the most similar pairs first, wherever they are.

    In each round the tokens alternate between two sets, A and B; each token of A is paired with its most similar token
    of B (cosine), and the most similar pairs merge, up to half of the tokens. Several of A may join one of B. Every
    output is the mean of all original tokens in it, and outputs are in the order of their first tokens, which is the
    order of the next round. Between equals the earlier goes first.

    A token with a NaN or an Inf never merges: where there are many, more than ``kept[b]`` may remain. ``kept`` is as
    for :func:`affinity_pool.study.reductions.budgets.at_budget`.

    Example:
        >>> import torch
        >>> from affinity_pool import Site
        >>> from affinity_pool.study.reductions import bipartite_merge
        >>> site = Site(4, reduction=bipartite_merge(torch.tensor([2])))
        >>> site.reduce(torch.randn(1, 6, 8), None, None).lengths.tolist()
        [2]
    """
    return at_budget(kept, lambda row, tokens, keep: (tokens, _match(tokens, keep)))


@torch.no_grad()
def _match(tokens: Tensor, keep: int) -> Tensor:
    """The plan: each token goes to the number of the first token of its group."""
    plan = torch.arange(len(tokens), device=tokens.device)
    finite = tokens.isfinite().all(1).nonzero().flatten()
    strangers = len(tokens) - len(finite)
    plan[finite] = finite[_match_finite(tokens[finite].double(), max(1, keep - strangers))]
    return plan


def _match_finite(tokens: Tensor, keep: int) -> Tensor:
    index = torch.arange(len(tokens), device=tokens.device)
    first = index
    while True:
        leaders, group = first.unique(return_inverse=True)
        groups = len(leaders)
        if groups <= keep:
            return first
        total = tokens.new_zeros(groups, tokens.shape[1]).index_add_(0, group, tokens)
        direction = torch.nn.functional.normalize(total, dim=1)
        # Rounded, so that last bits do not decide between pairs that are equally similar.
        best, partner = (direction[::2] @ direction[1::2].T).float().max(1)
        chosen = best.argsort(descending=True, stable=True)[: min(groups - keep, groups // 2)]
        into = torch.arange(groups, device=tokens.device)
        into[2 * chosen] = 2 * partner[chosen] + 1
        group = into[group]
        first = first.new_full((groups,), len(tokens)).scatter_reduce_(0, group, index, "amin")[group]
