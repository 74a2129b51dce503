"""Affinity Pooling of a stream: the same groups as one offline call, whatever the chunks."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from torch import Tensor

from . import checks
from .backends import serving
from .pooling import pool


class AffinityPooler:
    """Pools one sequence that arrives in chunks.

    A group is returned by the call that closes it; the open group is held as its running float32 sum, its count and its
    last ``window`` rows. Concatenated results equal :func:`affinity_pool.pool` on the whole sequence, bit for bit with
    every compiled or Triton kernel. No gradient is recorded.

    Args:
        threshold: cosine similarity; see :func:`affinity_pool.pool`.
        window: 1..32; see :func:`affinity_pool.pool`.

    Raises:
        TypeError, ValueError: ``threshold`` or ``window`` is not what :func:`affinity_pool.pool` takes.
    """

    def __init__(self, threshold: float = 0.8, window: int = 3) -> None:
        checks.check_rule(threshold, window)
        self.threshold = threshold
        self.window = window
        self._rows: Tensor | None = None  # the open group's latest rows, at most `window`
        self._sum: RunningSum | None = None
        self._count = 0

    @torch.no_grad()
    def step(self, chunk: Tensor) -> tuple[Tensor, Tensor]:
        """Take the next rows ``[n, D]`` and return ``(values [m, D], counts [m] int32)`` of the groups they close.

        Raises:
            TypeError, ValueError: the chunk is not a float ``[n, D]`` like those before it. Nothing is lost by that.
        """
        checks.check_rows(chunk, "[n, D]", name="chunk")
        if self._rows is not None and (chunk.shape[1], chunk.dtype, chunk.device) != (
            self._rows.shape[1],
            self._rows.dtype,
            self._rows.device,
        ):
            raise ValueError(
                f"chunk must be like the first one, {self._rows.shape[1]} features of {self._rows.dtype} on "
                f"{self._rows.device}, got {chunk.shape[1]} of {chunk.dtype} on {chunk.device}"
            )
        joining = 0
        while joining < chunk.shape[0] and self._joins(chunk[joining]):
            self._add(chunk[joining : joining + 1])
            joining += 1
        rest = chunk[joining:]
        if rest.shape[0] == 0:
            return _nothing(chunk)
        # Here a group opens, so the rest is a sequence of its own, but for its last group, which stays open.
        values, counts = self.flush() if self._rows is not None else _nothing(chunk)
        pooled = pool(rest, threshold=self.threshold, window=self.window)
        self._add(rest[rest.shape[0] - int(pooled.counts[-1]) :])
        return torch.cat([values, pooled.values[:-1]]), torch.cat([counts, pooled.counts[:-1]])

    @torch.no_grad()
    def flush(self) -> tuple[Tensor, Tensor]:
        """Close the open group and return ``(values [1, D], counts [1])`` of it; the next chunk starts anew.

        Raises:
            RuntimeError: nothing has been fed since the start or the last flush.
        """
        if self._rows is None or self._sum is None:
            raise RuntimeError("flush() has no open group: call step() with at least one row first")
        if self._count == 1:
            values = self._rows.clone()
        else:
            scale = torch.tensor(1.0, device=self._rows.device) / self._count
            values = (self._sum.total() * scale).to(self._rows.dtype).unsqueeze(0)
        counts = torch.tensor([self._count], dtype=torch.int32, device=values.device)
        self._rows = self._sum = None
        self._count = 0
        return values, counts

    def _joins(self, row: Tensor) -> bool:
        """Whether a row matches one of the latest rows.

        The op itself is asked, a pair at a time, so that a stream and an offline call cannot disagree.
        """
        if self._rows is None:
            return False
        pairs = torch.stack([self._rows, row.expand_as(self._rows)], dim=1).flatten(0, 1)
        cu_seqlens = torch.arange(0, pairs.shape[0] + 1, 2, dtype=torch.int32, device=row.device)
        groups = pool(pairs, cu_seqlens, threshold=self.threshold, window=1).counts
        return groups.shape[0] < pairs.shape[0]

    def _add(self, rows: Tensor) -> None:
        if self._sum is None:
            self._sum = SumByEights(rows) if serving(rows.device) == "cuda" else RunningSum(rows)
        for row in rows:
            self._sum.add(row)
        self._count += rows.shape[0]
        held = rows if self._rows is None else torch.cat([self._rows, rows])
        self._rows = held[-self.window :].clone()


class RunningSum:
    """Float32 sum of rows, one after the other: how an offline call sums them."""

    def __init__(self, rows: Tensor) -> None:
        self._open = torch.zeros(rows.shape[1], dtype=torch.float32, device=rows.device)

    def add(self, row: Tensor) -> None:
        self._open += row

    def total(self) -> Tensor:
        return self._open


class SumByEights(RunningSum):
    """The order of the CUDA kernel (csrc/cuda/means.cuh): eight rows are a block, eight blocks a larger one."""

    FAN = 8

    def __init__(self, rows: Tensor) -> None:
        super().__init__(rows)
        self._rows = 0  # in the block that is being filled
        self._blocks: list[tuple[int, Tensor]] = []  # sizes fall; fewer than eight of each

    def add(self, row: Tensor) -> None:
        super().add(row)
        self._rows += 1
        if self._rows < self.FAN:
            return
        self._blocks.append((1, self._open))
        self._open, self._rows = torch.zeros_like(self._open), 0
        while len(self._blocks) >= self.FAN and self._blocks[-self.FAN][0] == self._blocks[-1][0]:
            size = self._blocks[-1][0]
            joined = in_order(block for _, block in self._blocks[-self.FAN :])
            self._blocks[-self.FAN :] = [(size * self.FAN, joined)]

    def total(self) -> Tensor:
        return in_order([*(block for _, block in self._blocks), self._open])


def in_order(terms: Iterable[Tensor]) -> Tensor:
    """Their sum, first to last."""
    return functools.reduce(torch.add, terms)


def _nothing(chunk: Tensor) -> tuple[Tensor, Tensor]:
    return chunk.new_empty(0, chunk.shape[1]), chunk.new_empty(0, dtype=torch.int32)
