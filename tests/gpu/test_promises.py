"""Promised numbers of rows on a GPU: nothing waits, calls are captured, sizes and contents at the edge."""

from __future__ import annotations

import pytest
import torch
from op.cases import DTYPES, same_bits
from op.truth import assert_keeps_promise
from torch import Tensor

import affinity_pool
from affinity_pool import pool_padded_to, pool_to, rows_left

from . import child
from .batches import plateaus

pytestmark = pytest.mark.gpu


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device="cuda")


class Calls:
    """Each kind of call on tensors that are there beforehand: to make one on the way would be a wait of the test's."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.bounds, self.lengths = x, ints(0, 300, 600, 900), ints(300, 0, 77)
        self.counts = ints(10, 299, 300)

    def share(self) -> Result:
        return pool_padded_to(self.x, 0.4, self.lengths, left_padded=True)

    def one_int(self) -> Result:
        return pool_padded_to(self.x, 120)

    def tensor(self) -> Result:
        return pool_padded_to(self.x, self.counts)

    def packed_one_int(self) -> Result:
        return pool_to(self.x.flatten(0, 1), 120, self.bounds)

    def packed_ints(self) -> Result:
        return pool_to(self.x.flatten(0, 1), [1, 300, 120], self.bounds)

    def packed_share(self) -> Result:
        return pool_to(self.x[0], 0.4)


Result = tuple[Tensor, ...]
CAPTURED = ["share", "one_int", "tensor", "packed_one_int", "packed_share"]


@pytest.mark.parametrize("name", [*CAPTURED, "packed_ints"])
def test_nothing_waits_for_the_device(backend: str, name: str) -> None:
    """It returns while its stream still sleeps, and torch's own debug mode sees no wait."""
    call, stream = getattr(Calls(plateaus(3, 300, 512)), name), torch.cuda.Stream()
    expected = call()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        call()
        stream.synchronize()
        torch.cuda._sleep(1_000_000_000)
        torch.cuda.set_sync_debug_mode("error")
        try:
            result = call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert not stream.query(), "the stream was awaited"
    stream.synchronize()
    assert same_bits(result, expected)


@pytest.mark.parametrize("name", CAPTURED)
def test_a_replay_pools_what_is_in_the_buffer_now(backend: str, name: str) -> None:
    calls, graph = Calls(plateaus(3, 300, 512)), torch.cuda.CUDAGraph()
    call = getattr(calls, name)
    call()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        result = call()
    for seed in range(1, 5):
        calls.x.copy_(plateaus(3, 300, 512, seed=seed))
        calls.counts.copy_(ints(seed, 7 * seed, 300 - seed))
        graph.replay()
        assert same_bits(result, call())


def test_ints_that_differ_are_not_captured(backend: str) -> None:
    x, stream = plateaus(3, 300, 512), torch.cuda.Stream()
    pool_padded_to(x, [1, 2, 3])
    torch.cuda.synchronize()
    with (
        pytest.raises((RuntimeError, ValueError), match="int32 tensor"),
        torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream),
    ):
        pool_padded_to(x, [1, 2, 3])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "dim"), [(750, 4096), (1500, 4096), (1500, 8192), (4097, 1280), (300, 1001)])
@pytest.mark.parametrize("share", [0.15, 0.5, 0.8])
def test_model_sizes_obey_the_contract(backend: str, dtype, rows: int, dim: int, share: float) -> None:
    x = plateaus(rows, dim, dtype=dtype, seed=rows, noise=0.6)
    result = affinity_pool.Pooled(*(t.cpu() for t in pool_to(x, share)))
    assert len(result.counts) == rows_left(rows, share)
    assert_keeps_promise(x.cpu(), result, keep=share)


@pytest.mark.parametrize("rows", [17_000, 100_003, 1_000_000])
def test_long_runs_lose_exactly_the_weakest(backend: str, rows: int) -> None:
    """Beyond what a block caches, and what 16 bits count; threes of equal rows, whose cuts are the only weak links."""
    base = plateaus(rows // 3 + 1, 16, dtype=torch.float32, noise=1.0)
    x = base[torch.arange(rows, device="cuda") // 3]
    result = pool_to(x, len(torch.arange(rows).div(3, rounding_mode="floor").unique()))
    assert torch.equal(result.segment_ids.long(), torch.arange(rows, device="cuda") // 3)


@pytest.mark.parametrize("rows", [5000, 300_000])
def test_many_short_runs(backend: str, rows: int) -> None:
    x = plateaus(rows, 32, noise=0.6)
    mergeable = torch.rand(rows, device="cuda") > 0.15
    result = affinity_pool.Pooled(*(t.cpu() for t in pool_to(x, 0.5, mergeable=mergeable)))
    expected = pool_to(x.cpu(), 0.5, mergeable=mergeable.cpu())
    assert len(result.counts) == len(expected.counts)
    if rows == 5000:
        assert_keeps_promise(x.cpu(), result, keep=0.5, mergeable=mergeable.cpu())


def garbage(seed: int) -> None:
    """Bounds, lengths and counts that make no sense: clamped, so that every address stays inside the tensors."""
    generator = torch.Generator().manual_seed(seed)
    rows = plateaus(300, 128, seed=seed)

    def random(*size: int) -> Tensor:
        return torch.randint(-(2**31), 2**31 - 1, size, generator=generator).int().cuda()

    for sequences in (1, 5, 64):
        bounds = torch.randint(-100, 500, (sequences + 1,), generator=generator).int().cuda()
        counts = [300 // sequences] * (sequences - 1) + [3]
        for keep in (0.3, 2, counts, random(sequences)):
            result = pool_to(rows, keep, bounds)
            torch.cuda.synchronize()
            assert result.values.shape == (result.counts.shape[0], 128)
            assert result.counts.shape[0] <= 300
            if isinstance(keep, list):
                assert result.counts.shape[0] == sum(counts)
                assert int(result.segment_ids.max()) < sum(counts)
    for left in (False, True):
        pool_padded_to(rows.view(6, 50, 128), random(6), random(6), left_padded=left)
        torch.cuda.synchronize()
    assert pool_to(rows, 77).counts.sum() == 300


@pytest.mark.parametrize("seed", [0, 1])
def test_contents_without_sense_stay_in_bounds_and_end(backend: str, seed: int) -> None:
    child.run(garbage, backend, seed)
