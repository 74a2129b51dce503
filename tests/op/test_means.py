"""What a group becomes: a float32 mean rounded once, or the row itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from .cases import DIMS, DTYPES, INTS, LAYOUTS, bits, lay_out, spell
from .implementations import Implementation
from .truth import assert_obeys_contract

pytestmark = pytest.mark.each_instruction_set
HALVES = (torch.float16, torch.bfloat16)


def random_bits(rows: int, dim: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Rows of any bits at all: NaNs with payloads, infinities, subnormals, negative zeros."""
    ints = torch.iinfo(INTS[dtype])
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(ints.min, ints.max, (rows, dim), generator=generator, dtype=INTS[dtype]).view(dtype)


def every_half(dtype: torch.dtype) -> torch.Tensor:
    """All 65536 values of a 16-bit dtype, in order of their bits, as ``[1024, 64]``."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).view(1024, 64)


def tame(x: torch.Tensor) -> torch.Tensor:
    """Values that are not finite, or whose squares may not be, replaced by 1."""
    return torch.where(x.abs().float() <= 1e18, x, torch.ones_like(x))


def means_of_pairs(implementation: Implementation, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    pairs = torch.stack([a, b], dim=1).flatten(0, 1)
    cu_seqlens = torch.arange(0, pairs.shape[0] + 1, 2, dtype=torch.int32)
    result = implementation.pool(pairs, cu_seqlens, threshold=-1.0, window=1)
    assert result.counts.eq(2).all()
    return result.values


@given(
    dim=st.sampled_from(DIMS),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 999),
    layout=st.sampled_from(LAYOUTS),
    how=st.sampled_from(["above one", "text", "one row"]),
)
def test_a_group_of_one_is_copied_bit_for_bit(implementation: Implementation, dim, dtype, seed, layout, how):
    x = random_bits(1 if how == "one row" else 9, dim, dtype, seed)
    mergeable = torch.zeros(9, dtype=torch.bool) if how == "text" else None
    threshold = 1.5 if how == "above one" else -1.0
    result = implementation.pool(lay_out(x, layout), mergeable=mergeable, threshold=threshold)
    assert torch.equal(bits(result.values), bits(x))
    mergeable = None if mergeable is None else mergeable.unsqueeze(0)
    padded = implementation.pool_padded(lay_out(x.unsqueeze(0), layout), mergeable=mergeable, threshold=threshold)
    assert torch.equal(bits(padded.values[0]), bits(x))


@pytest.mark.parametrize("dtype", HALVES)
def test_every_16_bit_value_survives_alone(implementation: Implementation, dtype):
    x = every_half(dtype)
    assert torch.equal(bits(implementation.pool(x, threshold=2.0).values), bits(x))


@pytest.mark.parametrize("dtype", HALVES)
def test_every_16_bit_value_is_the_mean_of_itself_twice(implementation: Implementation, dtype):
    x = tame(every_half(dtype))
    assert torch.equal(means_of_pairs(implementation, x, x), x)


@pytest.mark.parametrize("dtype", HALVES)
def test_ties_between_16_bit_values_round_to_even(implementation: Implementation, dtype):
    """The mean of two neighbouring values lies halfway between them: all there are, subnormals and powers of two."""
    x = tame(every_half(dtype)).flatten()
    below, above = x[:-1].view(255, 257), x[1:].view(255, 257)
    expected = ((below.float() + above.float()) * 0.5).to(dtype)
    assert torch.equal(means_of_pairs(implementation, below, above), expected)


@pytest.mark.parametrize("dtype", HALVES)
def test_means_of_16_bit_pairs_are_rounded_once(implementation: Implementation, dtype):
    a = tame(random_bits(400, 64, dtype, seed=1))
    b = torch.where(torch.rand(400, 64) < 0.5, tame(random_bits(400, 64, dtype, seed=2)), a * 0.7)
    expected = ((a.float() + b.float()) * 0.5).to(dtype)
    assert torch.equal(means_of_pairs(implementation, a, b), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [2, 3, 7, 33, 300, 1500])
def test_means_are_no_worse_than_torch_s(implementation: Implementation, dtype, size):
    """But for the rounding of a running float32 sum, which grows as the root of the number of rows."""
    x = spell("A" * size, 257, dtype, noise=0.2, seed=size)
    result = implementation.pool(x, threshold=-1.0, window=1)
    assert result.counts.tolist() == [size]
    truth, slack = x.double().mean(0), 2.0**-23 * size**0.5 * x.double().abs().mean(0)
    torch_error = (x.mean(0).double() - truth).abs().max()
    assert ((result.values[0].double() - truth).abs() <= torch_error + slack).all()


def test_sums_do_not_overflow_float16(implementation: Implementation):
    x = torch.full((500, 40), 65504.0, dtype=torch.float16)
    assert implementation.pool(x, threshold=0.9).values.tolist() == [[65504.0] * 40]


@pytest.mark.parametrize("dtype", DTYPES)
def test_counts_beyond_what_16_bits_hold_exactly_scale_right(implementation: Implementation, dtype):
    """257 and 2049 have no bfloat16 and no float16."""
    for size in (257, 2049):
        x = spell("A" * size, 9, dtype, noise=0.01)
        assert_obeys_contract(x, implementation.pool(x, threshold=0.5, window=1), threshold=0.5, window=1)


def test_rows_of_other_groups_do_not_leak_in(implementation: Implementation):
    x = spell("AAABBC", 40)
    changed = x.clone()
    changed[3:] = spell("DDE", 40)
    before, after = (implementation.pool(rows, threshold=0.999) for rows in (x, changed))
    assert before.counts.tolist() == after.counts.tolist() == [3, 2, 1]
    assert torch.equal(before.values[0], after.values[0])
