"""Padded batches of plateaus, and a padded result held against the contract on the CPU."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from op.truth import assert_obeys_contract
from torch import Tensor

from affinity_pool import Pooled, PooledPadded, pool_padded


@dataclass(frozen=True)
class Batch:
    """Arguments of a call of ``pool_padded``."""

    x: Tensor
    lengths: Tensor | None = None
    mergeable: Tensor | None = None
    threshold: float = 0.8
    window: int = 3
    left_padded: bool = False

    def pool(self) -> PooledPadded:
        return pool_padded(
            self.x,
            self.lengths,
            mergeable=self.mergeable,
            threshold=self.threshold,
            window=self.window,
            left_padded=self.left_padded,
        )

    def assert_obeyed_by(self, result: PooledPadded) -> None:
        """Every row alone is a result of ``pool`` that obeys the contract; outside it there is nothing."""
        x = self.x.cpu()
        values, lengths, ids, counts = (t.cpu() for t in result)
        width = x.shape[1]
        valid = [width] * len(x) if self.lengths is None else self.lengths.tolist()
        for b, (n, m) in enumerate(zip(valid, lengths.tolist(), strict=True)):
            rows = slice(width - n, width) if self.left_padded else slice(0, n)
            groups = slice(width - m, width) if self.left_padded else slice(0, m)
            one = Pooled(values[b, groups], torch.tensor([0, m]).int(), ids[b, rows] - groups.start, counts[b, groups])
            mask = None if self.mergeable is None else self.mergeable[b, rows].cpu()
            assert_obeys_contract(x[b, rows], one, threshold=self.threshold, window=self.window, mergeable=mask)
            nothing = torch.ones(width, dtype=torch.bool)
            nothing[groups] = False
            assert not values[b, nothing].any()
            assert not counts[b, nothing].any()
            padding = torch.ones(width, dtype=torch.bool)
            padding[rows] = False
            assert ids[b, padding].eq(-1).all()


def plateaus(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0, noise: float = 0.35) -> Tensor:
    """``[..., T, D]`` on the GPU: runs of one to nine rows alike, some similarities near any threshold."""
    generator = torch.Generator().manual_seed(seed)
    rows = math.prod(shape[:-1])
    runs = torch.randint(1, 10, (rows,), generator=generator)
    run = torch.repeat_interleave(torch.arange(rows), runs)[:rows]
    base = torch.randn(int(run[-1]) + 1 if rows else 0, shape[-1], generator=generator)
    x = base[run] + noise * torch.randn(rows, shape[-1], generator=generator)
    return x.to(dtype).view(shape).cuda()
