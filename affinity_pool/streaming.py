"""Affinity Pooling of a stream: the same groups as one offline call, whatever the chunks."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable

import torch
from torch import Tensor

from . import checks
from .backends import serving
from .pooling import pool
from .results import Closed


class AffinityPooler:
    """Pools one sequence that arrives in chunks.

    A group is returned by the call that closes it; the open group is held as its running float32 sum, its count and its
    last ``window`` rows. Concatenated results equal :func:`affinity_pool.pool` on the whole sequence, bit for bit with
    every compiled or Triton kernel. No gradient is recorded. A call that fails or is interrupted changes nothing.

    Args:
        threshold: cosine similarity; see :func:`affinity_pool.pool`.
        window: 1..32; see :func:`affinity_pool.pool`.

    Raises:
        TypeError, ValueError: ``threshold`` or ``window`` is not what :func:`affinity_pool.pool` takes.

    Example:
        >>> import torch
        >>> from affinity_pool import AffinityPooler
        >>> pooler = AffinityPooler(threshold=0.8)
        >>> pooler.step(torch.tensor([[1.0, 0.0], [0.9, 0.1]])).counts.tolist()
        []
        >>> pooler.step(torch.tensor([[0.9, 0.2], [0.0, 1.0]])).counts.tolist()
        [3]
        >>> pooler.flush().values
        tensor([[0., 1.]])
    """

    def __init__(self, threshold: float = 0.8, window: int = 3) -> None:
        checks.check_rule(threshold, window)
        self.threshold = threshold
        self.window = window
        self._open: OpenGroup | None = None

    @torch.inference_mode(False)  # what is held must outlive the mode of the call
    @torch.no_grad()
    def step(self, chunk: Tensor) -> Closed:
        """Take the next rows ``[n, D]`` and return ``(values [m, D], counts [m] int32)`` of the groups they close.

        Raises:
            TypeError, ValueError: the chunk is not a float ``[n, D]`` like those before it.
            NotImplementedError: the chunk is of a ``torch.func`` transform or carries a forward-mode tangent.
        """
        checks.check_rows(chunk, "[n, D]", name="chunk")
        checks.check_data(chunk, "chunk")
        checks.check_plain(chunk, "chunk", "a stream keeps its rows from call to call: give the whole sequence to pool")
        group = None if self._open is None else self._open.like(chunk)
        joining = 0
        while joining < chunk.shape[0] and group is not None and self._joins(group, chunk[joining]):
            group.add(chunk[joining : joining + 1], self.window)
            joining += 1
        rest = chunk[joining:]
        closed = Closed(chunk.new_empty(0, chunk.shape[1]), chunk.new_empty(0, dtype=torch.int32))
        if rest.shape[0] > 0:
            # Here a group opens, so the rest is a sequence of its own, but for its last group, which stays open.
            before = closed if group is None else group.close()
            pooled = pool(rest, threshold=self.threshold, window=self.window)
            group = OpenGroup(chunk)
            group.add(rest[rest.shape[0] - int(pooled.counts[-1]) :], self.window)
            closed = Closed(
                torch.cat([before.values, pooled.values[:-1]]), torch.cat([before.counts, pooled.counts[:-1]])
            )
        self._open = group
        return closed

    @torch.inference_mode(False)
    @torch.no_grad()
    def flush(self) -> Closed:
        """Close the open group and return ``(values [1, D], counts [1])`` of it; the next chunk starts anew.

        Raises:
            RuntimeError: nothing has been fed since the start or the last flush.
        """
        if self._open is None:
            raise RuntimeError("flush() has no open group: call step() with at least one row first")
        closed = self._open.close()
        self._open = None
        return closed

    def _joins(self, group: OpenGroup, row: Tensor) -> bool:
        """Whether a row matches one of the group's latest rows.

        The op itself is asked, a pair at a time, so that a stream and an offline call cannot disagree.
        """
        pairs = torch.stack([group.rows, row.expand_as(group.rows)], dim=1).flatten(0, 1)
        cu_seqlens = torch.arange(0, pairs.shape[0] + 1, 2, dtype=torch.int32, device=row.device)
        groups = pool(pairs, cu_seqlens, threshold=self.threshold, window=1).counts
        return groups.shape[0] < pairs.shape[0]


class OpenGroup:
    """What a stream holds: the latest rows of the group, and the sum and count of all. ``like`` is the stream's."""

    def __init__(self, like: Tensor) -> None:
        self.rows: Tensor = like[:0].clone()
        self.count: int = 0
        self._sum = SumByEights(like) if serving(like.device) == "cuda" else RunningSum(like)

    def like(self, chunk: Tensor) -> OpenGroup:
        """A copy to which the rows of the chunk may be added; ValueError if they are of another kind."""
        here, there = ((rows.shape[1], rows.dtype, rows.device) for rows in (self.rows, chunk))
        if here != there:
            raise ValueError(
                f"chunk must be like the first one, {here[0]} features of {here[1]} on {here[2]}, "
                f"got {there[0]} of {there[1]} on {there[2]}"
            )
        return copy.deepcopy(self)

    def add(self, rows: Tensor, window: int) -> None:
        for row in rows:
            self._sum.add(row)
        self.count += rows.shape[0]
        self.rows = torch.cat([self.rows, rows[-window:]])[-window:].clone()

    def close(self) -> Closed:
        if self.count == 1:
            values = self.rows.clone()
        else:
            scale = torch.tensor(1.0, dtype=torch.float32, device=self.rows.device) / self.count
            values = (self._sum.total() * scale).to(self.rows.dtype).unsqueeze(0)
        return Closed(values, torch.tensor([self.count], dtype=torch.int32, device=values.device))


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
