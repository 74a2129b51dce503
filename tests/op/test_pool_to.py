"""Exactly as many rows as promised: ``pool_to`` and ``pool_padded_to``."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import affinity_pool
from affinity_pool import PooledPadded, rows_left

from .cases import DIMS, DTYPES, Case, bits, can_merge, cases, same_bits, spell
from .implementations import Implementation
from .test_invariance import all_same, unpacked, unpadded
from .test_rule import angles
from .truth import assert_keeps_promise, assert_means, promised_of_share

pytestmark = pytest.mark.each_instruction_set

shares = st.sampled_from([0.05, 0.25, 1 / 3, 0.5, 0.8, 0.999, 1.0]) | st.floats(0, 1, exclude_min=True)


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def counts_for(data: Any, case: Case) -> list[int]:
    return [data.draw(st.integers(min(1, n), n)) for n in case.lengths.tolist()]


@given(case=cases(), share=shares)
def test_a_share_of_each_run_obeys_the_contract(implementation: Implementation, case: Case, share: float):
    result = implementation.pool_to(case.x, share, case.cu_seqlens, mergeable=case.mergeable)
    assert_keeps_promise(case.x, result, keep=share, cu_seqlens=case.cu_seqlens, mergeable=case.mergeable)


@given(case=cases(masked=False), data=st.data(), given_as=st.sampled_from(["ints", "tensor"]))
def test_counts_obey_the_contract(implementation: Implementation, case: Case, data: Any, given_as: str):
    counts = counts_for(data, case)
    keep = counts if given_as == "ints" else ints(*counts)
    result = implementation.pool_to(case.x, keep, case.cu_seqlens)
    assert_keeps_promise(case.x, result, keep=counts, cu_seqlens=case.cu_seqlens)
    assert result.cu_seqlens.diff().tolist() == counts


@given(case=cases(), share=shares, left=st.booleans())
def test_packed_equals_padded_bit_for_bit(implementation: Implementation, case: Case, share: float, left: bool):
    x, lengths, mergeable = case.padded(left)
    padded = implementation.pool_padded_to(x, share, lengths, mergeable=mergeable, left_padded=left)
    packed = implementation.pool_to(case.x, share, case.cu_seqlens, mergeable=case.mergeable)
    assert all_same(unpacked(packed, lengths), unpadded(padded, lengths, left))


@given(case=cases(masked=False), data=st.data(), left=st.booleans(), given_as=st.sampled_from(["ints", "tensor"]))
def test_every_padded_element_is_defined(
    implementation: Implementation, case: Case, data: Any, left: bool, given_as: str
):
    x, lengths, _ = case.padded(left)
    width = x.shape[1]
    counts = counts_for(data, case)
    result = implementation.pool_padded_to(
        x, counts if given_as == "ints" else ints(*counts), lengths, left_padded=left
    )
    assert result.lengths.tolist() == counts
    assert result.values.is_contiguous()
    for b, (n, m) in enumerate(zip(lengths.tolist(), counts, strict=True)):
        filled = range(width - m, width) if left else range(m)
        valid = range(width - n, width) if left else range(n)
        for column in range(width):
            assert (int(result.counts[b, column]) > 0) == (column in filled)
            assert (int(result.segment_ids[b, column]) in filled) == (column in valid)
            if column not in filled:
                assert bits(result.values[b, column]).eq(0).all()
            if column not in valid:
                assert result.segment_ids[b, column] == -1
        assert int(result.counts[b].sum()) == n


@given(case=cases(), share=shares)
def test_a_sequence_ignores_its_batch_mates(implementation: Implementation, case: Case, share: float):
    together = implementation.pool_to(case.x, share, case.cu_seqlens, mergeable=case.mergeable)
    masks = [None] * len(case.sequences)
    if case.mergeable is not None:
        masks = list(case.mergeable.split(case.lengths.tolist()))
    alone = [
        unpacked(implementation.pool_to(x, share, mergeable=mask), case.lengths[b : b + 1])[0]
        for b, (x, mask) in enumerate(zip(case.x.split(case.lengths.tolist()), masks, strict=True))
    ]
    assert all_same(unpacked(together, case.lengths), alone)


@given(case=cases(), share=shares, data=st.data(), left=st.booleans())
def test_permuting_the_batch_permutes_the_result_and_a_second_run_changes_nothing(
    implementation: Implementation, case: Case, share: float, data: Any, left: bool
):
    x, lengths, mergeable = case.padded(left)
    order = torch.tensor(data.draw(st.permutations(range(len(case.sequences)))), dtype=torch.long)

    def call(rows: Tensor) -> PooledPadded:
        mask = None if mergeable is None else mergeable[rows]
        return implementation.pool_padded_to(x[rows], share, lengths[rows], mergeable=mask, left_padded=left)

    straight = call(torch.arange(len(order)))
    assert same_bits([t[order] for t in straight], call(order))
    assert same_bits(straight, call(torch.arange(len(order))))


@given(case=cases(max_sequences=1, masked=False, alphabet="ABCD", noise=st.sampled_from([0.3, 1.0])), data=st.data())
def test_groups_are_those_of_the_threshold_that_leaves_as_many(implementation: Implementation, case: Case, data: Any):
    """Half way between the weakest link inside a group and the strongest between two, where a float64 has room."""
    n = case.x.shape[0]
    links = sorted(torch.nn.functional.cosine_similarity(case.x[1:].double(), case.x[:-1].double(), dim=1).tolist())
    room = [m for m in range(2, n) if links[m - 1] - links[m - 2] > 1e-4 and links[m - 2] > -0.999]
    if not room:
        return
    count = data.draw(st.sampled_from(room))
    threshold = (links[count - 1] + links[count - 2]) / 2
    by_threshold = implementation.pool(case.x, threshold=threshold, window=1)
    assert same_bits(implementation.pool_to(case.x, count), by_threshold)
    assert len(by_threshold.counts) == count


@given(case=cases(max_sequences=1, masked=False))
def test_fewer_groups_only_ever_join_more(implementation: Implementation, case: Case):
    n, ids = case.x.shape[0], []
    for count in range(n, 0, -1):
        ids.append(implementation.pool_to(case.x, count).segment_ids)
        assert len(ids[-1].unique()) == count
    for finer, coarser in pairwise(ids):
        begins, still = finer.diff() > 0, coarser.diff() > 0
        assert not (still & ~begins).any()


@given(
    size=st.integers(1, 40), dim=st.sampled_from(DIMS), dtype=st.sampled_from(DTYPES), data=st.data(),
)  # fmt: skip
def test_of_equal_links_the_earliest_begin_groups(implementation: Implementation, size, dim, dtype, data):
    count = data.draw(st.integers(1, size))
    x = spell("A" * size, dim, dtype, seed=dim)
    assert implementation.pool_to(x, count).counts.tolist() == [1] * (count - 1) + [size - count + 1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [200, 256, 257, 300, 513, 1500])
def test_equal_links_in_a_long_run(implementation: Implementation, dtype, size):
    """Some links are weaker, some are equal, and of these not all are taken."""
    x = torch.ones(size, 9, dtype=dtype)
    changes = torch.arange(size) // 5
    x[:, 0] = torch.where(changes % 2 == 0, 1.0, -1.0)
    x[size // 2] *= -1
    cosine = torch.nn.functional.cosine_similarity(x[1:].double(), x[:-1].double(), dim=1)
    weakest_first = sorted(range(1, size), key=lambda t: round(cosine[t - 1].item(), 9))
    for count in (1, 2, 3, size // 10, size // 5 + 1, size // 2, size - 1, size):
        begins = [0, *sorted(weakest_first[: count - 1]), size]
        expected = [b - a for a, b in pairwise(begins)]
        assert implementation.pool_to(x, count).counts.tolist() == expected


@pytest.mark.parametrize("size", [255, 256, 257, 258, 511, 512, 513, 700, 5000])
def test_long_runs_lose_exactly_the_weakest(implementation: Implementation, size):
    """Rows that turn by angles of which no two are equal: the largest turns begin groups."""
    if implementation.name in ("reference", "emulator") and size > 700:
        pytest.skip("takes long there")
    turns = torch.randperm(size, generator=torch.Generator().manual_seed(size)).double() / size * 170 + 1
    x = angles(*turns.cumsum(0).tolist()).float()
    order = turns[1:].argsort(descending=True, stable=True).add(1).tolist()
    for count in (2, size // 3, size - 1):
        begins = [0, *sorted(order[: count - 1]), size]
        expected = [b - a for a, b in pairwise(begins)]
        assert implementation.pool_to(x, count).counts.tolist() == expected


def test_runs_of_every_length_side_by_side(implementation: Implementation):
    """Wherever in a block of a kernel a run begins or ends; text between."""
    text = "".join("AABCABCCDA"[: 1 + i % 10] + "a" * (i % 3) for i in range(90))
    text += "B" * 300 + "a" + "ABCD" * 80
    x = spell(text, 17, noise=0.4)
    for share in (0.2, 0.5, 0.9):
        result = implementation.pool_to(x, share, mergeable=can_merge(text))
        assert_keeps_promise(x, result, keep=share, mergeable=can_merge(text))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("odd", ["?", "^", "!"])
def test_a_row_that_is_not_finite_stays_alone_while_the_count_allows(implementation: Implementation, dtype, odd):
    text = f"AB{odd}CDAB{odd}{odd}CD"
    x = spell(text, 65, dtype, noise=0.3)
    if odd == "!" and dtype != torch.float16:
        assert not torch.isinf(x).any()
    alone = [t for t, c in enumerate(text) if c == odd]
    needed = 1 + len({u for t in alone for u in (t, t + 1)})
    for count in range(needed, len(text) + 1):
        result = implementation.pool_to(x, count)
        assert len(result.counts) == count
        assert result.counts[result.segment_ids[alone].long()].tolist() == [1] * len(alone)
        others = [g for g in range(count) if g not in result.segment_ids[alone].tolist()]
        assert result.values[others].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [4, 64, 257])
def test_equal_rows_with_a_squared_norm_beyond_float32_have_no_link(implementation: Implementation, dtype, dim):
    """Four links, all the weakest there are: the earliest begin groups, though two rows are equal."""
    x = torch.ones(5, dim, dtype=dtype)
    x[1:4] = 1e20
    for count in (2, 3, 4):
        assert implementation.pool_to(x, count).counts.tolist() == [1] * (count - 1) + [6 - count]


@given(case=cases(masked=True), share=shares)
def test_text_passes_bit_for_bit(implementation: Implementation, case: Case, share: float):
    result = implementation.pool_to(case.x, share, case.cu_seqlens, mergeable=case.mergeable)
    text = ~can_merge("".join(case.sequences))
    rows = result.segment_ids.long()[text]
    assert (result.counts[rows] == 1).all()
    assert torch.equal(bits(result.values[rows]), bits(case.x[text].contiguous()))


@given(case=cases())
def test_the_whole_share_is_the_identity(implementation: Implementation, case: Case):
    result = implementation.pool_to(case.x, 1.0, case.cu_seqlens, mergeable=case.mergeable)
    assert torch.equal(bits(result.values), bits(case.x.contiguous()))
    assert torch.equal(result.cu_seqlens, case.cu_seqlens)


def test_one_means_a_row_and_one_point_nought_all(implementation: Implementation):
    x = spell("AABBC", 8)
    assert implementation.pool_to(x, 1).counts.tolist() == [5]
    assert implementation.pool_to(x, 1.0).counts.tolist() == [1] * 5


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rows_and_no_sequences(implementation: Implementation, dtype):
    empty = torch.empty(0, 7, dtype=dtype)
    for keep in (0.5, 0, [0], ints(0)):
        assert [tuple(t.shape) for t in implementation.pool_to(empty, keep)] == [(0, 7), (2,), (0,), (0,)]
    for keep in (0.5, 0, [], ints()):
        result = implementation.pool_to(empty, keep, ints(0))
        assert [t.tolist() for t in result] == [[], [0], [], []]
    for shape in ((0, 5, 3), (2, 0, 3)):
        for keep in (0.5, 0, [0] * shape[0], ints(*[0] * shape[0])):
            result = implementation.pool_padded_to(torch.empty(shape, dtype=dtype), keep)
            assert [tuple(t.shape) for t in result] == [shape, shape[:1], shape[:2], shape[:2]]


def test_zero_rows_have_links_of_zero(implementation: Implementation):
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-0.0, 0.0], [-1.0, 0.1], [1.0, 0.0], [1.0, 0.1]])
    assert implementation.pool_to(x, 2).counts.tolist() == [4, 2]
    # The links 0, 0 and -0.0 are equal: the earliest begins the third group, and so on.
    assert implementation.pool_to(x, 3).counts.tolist() == [1, 3, 2]
    assert implementation.pool_to(x, 4).counts.tolist() == [1, 1, 2, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [1, 24, 65, 600])
def test_there_is_one_zero(implementation: Implementation, dtype, dim):
    """Products that underflow leave links of 0, -0 and 0: equal ones, of which the earliest begins a group."""
    x = torch.full((4, dim), 1e-30, dtype=dtype) * torch.tensor([1, 1, -1, -1]).unsqueeze(1)
    assert implementation.pool_to(x, 2).counts.tolist() == [1, 3]


def test_threads_and_blocks_leave_no_trace():
    """3 MB of rows, whose blocks end inside groups."""
    x = spell("A" * 1500, 512, noise=0.6, seed=3)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(affinity_pool.pool_to(x, 700))
        batch = affinity_pool.pool_padded_to(x.view(3, 500, 512), [100, 250, 500], left_padded=True)
        results.append(batch)
    assert same_bits(results[0], results[2])
    assert same_bits(results[0], results[4])
    assert same_bits(results[1], results[3])
    assert same_bits(results[1], results[5])
    starts = [0, *results[0].counts.cumsum(0).tolist()]
    assert_means(x, list(pairwise(starts)), results[0].values)


@given(rows=st.integers(0, 10**7), share=shares)
def test_rows_left_is_the_published_formula(rows: int, share: float):
    left = rows_left(rows, share)
    assert min(rows, 1) <= left <= rows
    if rows * share < 1e6:  # beyond, a float64 product is not exact to 1e-9
        assert left == (promised_of_share(rows, share) if rows else 0)


@pytest.mark.parametrize("rows", [1, 3, 7, 10, 49, 750, 1500, 100_003])
def test_a_share_made_of_a_count_gives_the_count(rows: int):
    for count in {1, 2, 3, rows // 3, rows // 2, rows - 1, rows} & set(range(1, rows + 1)):
        assert rows_left(rows, count / rows) == count


@pytest.mark.parametrize(
    ("rows", "keep", "error", "words"),
    [
        (3, 1, TypeError, r"^keep must be a float, a share of rows in \(0, 1\], got int 1"),
        (3, 0.0, ValueError, r"^keep must be a share of rows in \(0, 1\], got 0.0"),
        (3, math.nan, ValueError, r"^keep must be a share .* got nan"),
        (-1, 0.5, ValueError, r"^rows must be in 0..2\^31 - 1, got -1"),
        (2**31, 0.5, ValueError, r"^rows must be in 0..2\^31 - 1, got 2147483648"),
        (2.0, 0.5, TypeError, r"^rows must be an int, got float 2.0"),
    ],
)
def test_rows_left_refuses_in_words(rows, keep, error, words):
    with pytest.raises(error, match=words):
        rows_left(rows, keep)


def test_every_backend_counts_as_rows_left(implementation: Implementation):
    """Shares at and beside whole numbers of rows; told by bounds that there is one sequence, the kernel counts."""
    rows = 49
    x, bounds = torch.ones(rows, 2), ints(0, rows)
    for count in range(1, rows + 1, 4):
        for share in (count / rows, math.nextafter(count / rows, 0), min(1.0, math.nextafter(count / rows, 1))):
            assert len(implementation.pool_to(x, share, bounds).counts) == rows_left(rows, share) == count
        more = min(1.0, (count + 1e-6) / rows)
        assert len(implementation.pool_to(x, more, bounds).counts) == rows_left(rows, more)
        assert implementation.pool_to(x, more).counts.sum() == rows
