"""What is timed: the op, and the ways to do its work without it, as well as torch alone can.

A contender is built for a case and then takes ``x [N, D]`` to the group means ``[M, D]``; ``clone`` to a copy of ``x``.
The op also returns segment ids, counts and bounds; the others are not asked for them. ``triton`` is this project's own
second GPU backend. On a GPU the kernel's cost is that of the padded op (:data:`PADDED`): a result ``[M, D]`` needs a
round trip to the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import affinity_pool
from affinity_pool.results import PooledPadded

Pool = Callable[[Tensor], Tensor]
PoolPadded = Callable[[Tensor], PooledPadded]


@dataclass(frozen=True)
class Rule:
    """The arguments of a call beside ``x``."""

    threshold: float
    window: int
    cu_seqlens: Tensor | None = None
    counts: tuple[int, ...] = ()
    """Groups of each sequence, for those who are told how many there shall be."""

    def batch(self, x: Tensor) -> Tensor:
        """``x [N, D]`` as ``[B, T, D]``: the sequences of a case are equally long."""
        sequences = 1 if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1
        return x.view(sequences, -1, x.shape[1])

    def positions(self, x: Tensor) -> Tensor:
        """``[N]``: how many rows of its own sequence lie before each row."""
        rows = torch.arange(x.shape[0], device=x.device)
        if self.cu_seqlens is None:
            return rows
        return rows - self.cu_seqlens[torch.searchsorted(self.cu_seqlens, rows, right=True) - 1]


def ours(rule: Rule) -> Pool:
    return lambda x: affinity_pool.pool(x, rule.cu_seqlens, threshold=rule.threshold, window=rule.window).values


def ours_padded(rule: Rule) -> PoolPadded:
    return lambda x: affinity_pool.pool_padded(rule.batch(x), threshold=rule.threshold, window=rule.window)


def ours_to(rule: Rule) -> Pool:
    return lambda x: affinity_pool.pool_to(x, rule.counts, rule.cu_seqlens).values


def ours_padded_to(rule: Rule) -> PoolPadded:
    """One number for all sequences, or a tensor: ints that differ cannot be captured."""
    same = len(set(rule.counts)) == 1
    device = None if rule.cu_seqlens is None else rule.cu_seqlens.device
    keep = rule.counts[0] if same else torch.tensor(rule.counts, dtype=torch.int32, device=device)
    return lambda x: affinity_pool.pool_padded_to(rule.batch(x), keep)


def triton(rule: Rule) -> Pool:
    from affinity_pool import triton_kernels

    return lambda x: triton_kernels.pool(x, rule.cu_seqlens, None, rule.threshold, rule.window)[0]


def triton_padded(rule: Rule) -> PoolPadded:
    from affinity_pool import triton_kernels

    def pool(x: Tensor) -> PooledPadded:
        return PooledPadded(*triton_kernels.pool_padded(rule.batch(x), None, None, rule.threshold, rule.window))

    return pool


def clone(rule: Rule) -> Pool:
    return torch.clone


def paper_loop(rule: Rule) -> Pool:
    """Section 4 of the paper as one would write it down: a cosine similarity and a decision per token."""

    def pool(x: Tensor) -> Tensor:
        starts = {0} if rule.cu_seqlens is None else set(rule.cu_seqlens.tolist())
        means = []
        group: list[Tensor] = []
        for t, row in enumerate(x):
            if t in starts:
                joins = False
            else:
                latest = torch.stack(group[-rule.window :])
                joins = bool(F.cosine_similarity(row.unsqueeze(0), latest, dim=-1).max() >= rule.threshold)
            if not joins and group:
                means.append(torch.stack(group).mean(0))
                group = []
            group.append(row)
        means.append(torch.stack(group).mean(0))
        return torch.stack(means)

    return pool


def vectorised(rule: Rule) -> Pool:
    """Similarities by small matrix products, groups by a Python loop over the matches, means by embedding_bag.

    Eight rows against the eleven they may match: a third of that is wanted, and still it is a third of the time of
    elementwise products summed, whose temporaries go through memory.
    """
    block = 8

    def nearest_match(x: Tensor) -> list[int]:
        n, dim = x.shape
        blocks = -(-n // block)
        rows = F.pad(x.float(), (0, 0, rule.window, blocks * block - n))
        norm = torch.linalg.vector_norm(rows, dim=-1)
        own = rows[rule.window :].view(blocks, block, dim)
        seen = rows.as_strided((blocks, block + rule.window, dim), (block * dim, dim, 1))
        products = torch.bmm(own, seen.transpose(1, 2))
        position = rule.positions(x)
        nearest = torch.full((n,), rule.window + 1, device=x.device)
        for lag in range(rule.window, 0, -1):
            first = rule.window - lag
            dot = products.diagonal(first, 1, 2).reshape(-1)[:n]
            bound = rule.threshold * norm[rule.window : rule.window + n] * norm[first : first + n]
            nearest[(dot >= bound) & (position >= lag)] = lag
        return nearest.tolist()

    def pool(x: Tensor) -> Tensor:
        opened: list[int] = []
        for t, k in enumerate(nearest_match(x)):
            if not opened or k > min(t - opened[-1], rule.window):
                opened.append(t)
        rows = torch.arange(x.shape[0], device=x.device)
        return F.embedding_bag(rows, x, torch.tensor(opened, device=x.device), mode="mean")

    return pool


def compiled(rule: Rule) -> Pool:
    """The best formulation that ``torch.compile(fullgraph=True)`` takes, no Python left.

    A token is a map on the open group's capped length 1..window, and maps compose: log2(N) gathers compose the prefixes
    of all tokens, which gives the exact groups. Similarities are sums of elementwise products, which the compiler fuses
    with their reductions; matrix products, faster uncompiled, are slower here.
    """

    def nearest_match(x: Tensor) -> Tensor:
        x = x.float()
        rows, position = torch.arange(x.shape[0], device=x.device), rule.positions(x)
        squared_norm = (x * x).sum(-1)
        nearest = torch.full_like(rows, rule.window + 1)
        for lag in range(rule.window, 0, -1):
            other = (rows - lag).clamp(min=0)
            bound = rule.threshold * (squared_norm * squared_norm[other]).sqrt()
            matches = ((x * x[other]).sum(-1) >= bound) & (position >= lag)
            nearest = torch.where(matches, lag, nearest)
        return nearest

    def pool(x: Tensor) -> Tensor:
        nearest = nearest_match(x)
        length = torch.arange(1, rule.window + 1, device=x.device)
        after = torch.where(nearest[:, None] <= length, (length + 1).clamp(max=rule.window), 1) - 1
        step = 1
        while step < x.shape[0]:
            after = torch.cat([after[:step], after[step:].gather(1, after[:-step])])
            step *= 2
        before = F.pad(after[:-1, 0] + 1, (1, 0))
        opened = (nearest > before).nonzero().squeeze(1)
        return F.embedding_bag(torch.arange(x.shape[0], device=x.device), x, opened, mode="mean")

    torch.compiler.reset()  # else the cases before this one count as recompilations of one function
    torch._dynamo.config.capture_dynamic_output_shape_ops = True  # the number of groups
    return torch.compile(pool, fullgraph=True, dynamic=False)


def torch_to(rule: Rule) -> Pool:
    """To a number of groups of one sequence: rows of length one, their products, a sort, means by segment_reduce."""
    (count,) = rule.counts

    def pool(x: Tensor) -> Tensor:
        unit = F.normalize(x.float(), dim=1)
        links = (unit[1:] * unit[:-1]).sum(1)
        begins = links.argsort(stable=True)[: count - 1].sort().values + 1
        lengths = F.pad(begins, (1, 1), value=0)
        lengths[-1] = x.shape[0]
        return torch.segment_reduce(x.float(), "mean", lengths=lengths.diff()).to(x.dtype)

    return pool


CONTENDERS: dict[str, Callable[[Rule], Pool]] = {
    "clone": clone,
    "ours": ours,
    "ours to a count": ours_to,
    "torch to a count": torch_to,
    "triton": triton,
    "torch.compile": compiled,
    "vectorised": vectorised,
    "paper's loop": paper_loop,
}

PADDED: dict[str, Callable[[Rule], PoolPadded]] = {
    "ours": ours_padded,
    "ours to a count": ours_padded_to,
    "triton": triton_padded,
}
