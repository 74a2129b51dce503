"""Sizes and arguments at the edge: large shapes against the contract, offsets beyond 32 bits, garbage bounds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op.cases import DTYPES, same_bits
from op.truth import assert_obeys_contract

from affinity_pool import Pooled, pool, pool_padded, reference

from . import child
from .batches import Batch, plateaus

pytestmark = pytest.mark.gpu


@settings(max_examples=25, deadline=None)
@given(
    dim=st.sampled_from([512, 776, 1280, 2048, 3584, 4096, 5120, 8192, 1001, 4100]),
    width=st.integers(1, 260),
    rows=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
    window=st.sampled_from([1, 2, 3, 4, 8, 11, 32]),
    noise=st.sampled_from([0.1, 0.35, 0.5, 0.62]),
    left=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_model_sizes_obey_the_contract(backend, dim, width, rows, dtype, window, noise, left, seed) -> None:
    x = plateaus(rows, width, dim, dtype=dtype, seed=seed, noise=noise)
    lengths = torch.randint(0, width + 1, (rows,), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
    mergeable = torch.rand(rows, width, generator=torch.Generator().manual_seed(seed)) > 0.1
    batch = Batch(x, lengths.cuda(), mergeable.cuda() if seed % 2 else None, 0.8, window, left)
    batch.assert_obeyed_by(batch.pool())


@settings(max_examples=15, deadline=None)
@given(
    dim=st.sampled_from([64, 513, 1024]),
    dtype=st.sampled_from(DTYPES),
    window=st.integers(1, 32),
    seed=st.integers(0, 1000),
)
def test_groups_are_the_reference_s(backend, dim, dtype, window, seed) -> None:
    """Far from the threshold nothing may differ but the rounding of a mean."""
    x = plateaus(120, dim, dtype=dtype, seed=seed, noise=0.1)
    cu_seqlens = torch.tensor([0, 1, 1, 50, 120], dtype=torch.int32)
    there = pool(x, cu_seqlens.cuda(), threshold=0.8, window=window)
    right = reference.pool(x.cpu(), cu_seqlens, threshold=0.8, window=window)
    assert same_bits(tuple(t.cpu() for t in there[1:]), right[1:])
    torch.testing.assert_close(there.values.cpu(), right.values, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("tokens", [7, 8, 9, 63, 64, 65, 255, 256, 257, 2048, 20000])
def test_lengths_around_tiles_and_chains(backend: str, tokens: int) -> None:
    """Every row matches the one two before it and no other, so each tile depends on the one before: the first row
    alone, like both kinds or one of them, decides whether all join or none. The longest chain a scan can meet."""
    base = torch.eye(2).repeat_interleave(32, 1)
    for first, window, groups in ((1.0, 1, tokens - 1), (1.0, 2, 1), (1.0, 3, 1), (0.0, 2, tokens), (0.0, 3, tokens)):
        x = base[torch.arange(tokens) % 2]
        x[0, 32:] = first  # row 1 is like it at 0.707, or not at all
        result = Pooled(*(t.cpu() for t in pool(x.cuda(), threshold=0.6, window=window)))
        assert result.counts.shape[0] == groups
        if tokens <= 2048:
            assert_obeys_contract(x, result, threshold=0.6, window=window)


def needs_memory(gigabytes: float) -> None:
    free = torch.cuda.mem_get_info()[0] / 1e9
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes} GB of free GPU memory, {free:.1f} GB are there")


@pytest.mark.parametrize("op", ["pool", "pool_padded", "left_padded"])
def test_offsets_beyond_32_bits(backend: str, op: str) -> None:
    """2^31 elements and some: threes of equal rows, whose mean is the row itself, bit for bit."""
    needs_memory(16)
    torch.utils.deterministic.fill_uninitialized_memory = False
    dim, groups = 4096, (2**31 // 4096) // 3 + 100
    base = torch.randn(1000, dim, device="cuda", dtype=torch.bfloat16)
    x = base[torch.arange(3 * groups, device="cuda") // 3 % 1000]
    assert x.numel() > 2**31
    if op == "pool":
        values, _, ids, counts = pool(x, threshold=0.9)
    else:
        values, lengths, ids, counts = pool_padded(x.unsqueeze(0), threshold=0.9, left_padded=op == "left_padded")
        assert lengths.tolist() == [groups]
        there = slice(2 * groups, None) if op == "left_padded" else slice(0, groups)
        ids = ids[0] - there.start
        values, counts = values[0, there], counts[0, there]
    assert counts.eq(3).all()
    assert torch.equal(ids.long(), torch.arange(3 * groups, device="cuda") // 3)
    for first in range(0, groups, 50_000):
        some = torch.arange(first, min(groups, first + 50_000), device="cuda")
        assert torch.equal(values[some], base[some % 1000])


def garbage(seed: int) -> None:
    """Bounds that decrease, overrun, are negative or huge: clamped, so that every address stays inside the tensors."""
    generator = torch.Generator().manual_seed(seed)
    rows = plateaus(300, 128, seed=seed)
    for lowest, highest in ((-400, 700), (-(2**31), 2**31 - 1), (0, 301)):
        for sequences in (1, 5, 64):
            bounds = torch.randint(lowest, highest, (sequences + 1,), generator=generator).int().cuda()
            values, cu_seqlens, ids, counts = pool(rows, bounds)
            torch.cuda.synchronize()
            assert values.shape == (counts.shape[0], 128)
            assert counts.shape[0] <= 300
            assert cu_seqlens.shape == bounds.shape
            assert ids.shape == (300,)
    x = rows.view(6, 50, 128)
    for lengths in ([-1, 51, 2**31 - 1, -(2**31), 50, 0], [-7] * 6, [1000] * 6):
        given = torch.tensor(lengths).int().cuda()
        clamped = given.clamp(0, 50)
        for left in (False, True):
            result = pool_padded(x, given, left_padded=left)
            assert same_bits(result, pool_padded(x, clamped, left_padded=left))
    Batch(x).assert_obeyed_by(pool_padded(x))


@pytest.mark.parametrize("seed", [0, 1])
def test_garbage_bounds_stay_in_bounds_and_end(backend: str, seed: int) -> None:
    child.run(garbage, backend, seed)
