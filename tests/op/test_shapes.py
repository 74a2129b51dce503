"""Shapes, dtypes, padding and layouts, down to nothing at all; every output element is written."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from .cases import DTYPES, LAYOUTS, Case, bits, can_merge, cases, lay_out, same_bits, spell
from .implementations import Implementation

sides = pytest.mark.parametrize("left", [False, True], ids=["right padded", "left padded"])


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def test_uninitialised_memory_is_poisoned_here():
    assert torch.empty(3).isnan().all()
    assert torch.empty(3, dtype=torch.int32).eq(2**31 - 1).all()


def test_uninitialised_memory_is_poisoned_in_the_op(implementation: Implementation):
    """The CPU kernel returns the front of a buffer of N rows: what lies behind is poison, so the rest was written."""
    if implementation.name != "cpu":
        pytest.skip("other implementations allocate otherwise")
    result = implementation.pool(spell("AAAA", 8), threshold=0.8)
    buffer = torch.empty(0).set_(result.values.untyped_storage(), 0, (4, 8))
    assert not buffer[0].isnan().any()
    assert buffer[1:].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rows_make_no_groups(implementation: Implementation, dtype):
    result = implementation.pool(torch.empty(0, 7, dtype=dtype))
    assert [tuple(t.shape) for t in result] == [(0, 7), (2,), (0,), (0,)]
    assert result.values.dtype == dtype
    assert result.cu_seqlens.tolist() == [0, 0]


def test_no_sequences_make_no_groups(implementation: Implementation):
    result = implementation.pool(torch.empty(0, 7), ints(0))
    assert result.cu_seqlens.tolist() == [0]
    assert result.values.shape == (0, 7)


def test_empty_sequences_keep_their_place(implementation: Implementation):
    result = implementation.pool(spell("AAB", 16), ints(0, 0, 2, 2, 3, 3), threshold=0.9)
    assert result.cu_seqlens.tolist() == [0, 0, 1, 1, 2, 2]
    assert result.counts.tolist() == [2, 1]


@sides
@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (0, 0, 1)])
def test_an_empty_batch_or_width_gives_empty_outputs(implementation: Implementation, shape, left):
    result = implementation.pool_padded(torch.empty(shape), left_padded=left)
    assert [tuple(t.shape) for t in result] == [shape, shape[:1], shape[:2], shape[:2]]
    assert result.lengths.tolist() == [0] * shape[0]


@sides
def test_rows_of_length_zero_give_padding_alone(implementation: Implementation, left):
    result = implementation.pool_padded(torch.full((2, 3, 4), torch.nan), ints(0, 0), left_padded=left)
    assert result.values.eq(0).all()
    assert result.counts.eq(0).all()
    assert result.segment_ids.eq(-1).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [1, 3, 32])
def test_one_row_is_one_group(implementation: Implementation, dtype, window):
    x = spell("A", 5, dtype)
    result = implementation.pool(x, window=window)
    assert same_bits(result, (x, ints(0, 1), ints(0), ints(1)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_feature_compares_signs(implementation: Implementation, dtype):
    x = torch.tensor([[1.0], [5.0], [0.25], [-3.0], [-1.0], [2.0]], dtype=dtype)
    result = implementation.pool(x, threshold=1.0, window=1)
    assert result.counts.tolist() == [3, 2, 1]


def test_a_window_wider_than_the_sequence_is_the_sequence(implementation: Implementation):
    x = spell("ABABACA", 24, noise=0.3)
    narrow, wide = (implementation.pool(x, threshold=0.3, window=window) for window in (7, 32))
    assert same_bits(narrow, wide)


@given(case=cases(), left=st.booleans())
def test_every_padded_element_is_defined(implementation: Implementation, case: Case, left: bool):
    """Means at the front (or the end), zeros elsewhere, -1 exactly in padding; what padding holds is never read."""
    x, lengths, mergeable = case.padded(left)
    batch, width, _ = x.shape
    result = implementation.pool_padded(x, lengths, mergeable=mergeable, left_padded=left, **case.rule)
    assert [t.dtype for t in result] == [case.dtype] + [torch.int32] * 3
    assert result.values.is_contiguous()
    for b in range(batch):
        n, m = int(lengths[b]), int(result.lengths[b])
        valid = slice(width - n, width) if left else slice(0, n)
        filled = slice(width - m, width) if left else slice(0, m)
        unused = slice(0, width - m) if left else slice(m, width)
        padding = slice(0, width - n) if left else slice(n, width)
        assert result.segment_ids[b, padding].eq(-1).all()
        assert bits(result.values[b, unused]).eq(0).all()
        assert result.counts[b, unused].eq(0).all()
        assert int(result.counts[b].sum()) == n
        assert result.segment_ids[b, valid].unique().tolist() == list(range(*filled.indices(width)))


@given(case=cases(), layout=st.sampled_from(LAYOUTS), left=st.booleans())
def test_strides_do_not_matter(implementation: Implementation, case: Case, layout: str, left: bool):
    assert same_bits(
        implementation.pool(lay_out(case.x, layout), case.cu_seqlens, **case.options),
        implementation.pool(case.x.contiguous(), case.cu_seqlens, **case.options),
    )
    x, lengths, mergeable = case.padded(left)
    options = {"mergeable": mergeable, "left_padded": left, **case.rule}
    assert same_bits(
        implementation.pool_padded(lay_out(x, layout), lengths, **options),
        implementation.pool_padded(x.contiguous(), lengths, **options),
    )


def test_strides_of_the_other_arguments_do_not_matter(implementation: Implementation):
    text, apart = "AAaAABBb", slice(None, None, 2)
    x, mergeable, cu_seqlens = spell(text, 12), can_merge(text), ints(0, 3, 8)
    spread = mergeable.repeat_interleave(2).logical_xor(torch.arange(16) % 2 == 1)[apart]
    assert same_bits(
        implementation.pool(x, ints(0, 9, 3, 9, 8, 9)[apart], mergeable=spread, threshold=0.9),
        implementation.pool(x, cu_seqlens, mergeable=mergeable, threshold=0.9),
    )
    x, mergeable = torch.stack([x, x.flip(0)]), torch.stack([mergeable, mergeable.flip(0)])
    assert same_bits(
        implementation.pool_padded(x, ints(7, 9, 5, 9)[apart], mergeable=mergeable.t().contiguous().t()),
        implementation.pool_padded(x, ints(7, 5), mergeable=mergeable),
    )


def test_a_broadcast_row_is_read_as_its_copies(implementation: Implementation):
    x = spell("A", 33)
    result = implementation.pool(x.expand(6, 33), threshold=1.0)
    assert result.counts.tolist() == [6]
    mask = torch.tensor([False]).expand(6)
    assert implementation.pool(x.expand(6, 33), mergeable=mask).counts.tolist() == [1] * 6


@given(case=cases())
def test_arguments_are_left_as_they_were(implementation: Implementation, case: Case):
    before = [bits(case.x).clone(), case.cu_seqlens]
    cu_seqlens = case.cu_seqlens
    result = implementation.pool(case.x, cu_seqlens, **case.options)
    result.values.fill_(7)  # and the results are no views of them
    result.cu_seqlens.fill_(7)
    assert torch.equal(bits(case.x), before[0])
    assert torch.equal(cu_seqlens, before[1])
