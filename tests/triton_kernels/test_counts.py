"""Pooling to a promised number of rows: links and their selection, each alone, and what the two ops make of them.

Rows of small integers have sums, and so links, that are exact: then the reference leaves no room, not for ties either.
"""

from __future__ import annotations

import math
import os
from itertools import pairwise

import pytest
import torch

import affinity_pool
from affinity_pool import reference

pytest.importorskip("triton", reason="triton is not installed")
interpreted = os.environ.get("TRITON_INTERPRET") == "1"
if not interpreted and affinity_pool.triton_kernels.missing():
    pytest.skip("needs a GPU; test_interpreter.py runs this without", allow_module_level=True)

import triton  # noqa: E402
import triton.language as tl  # noqa: E402
from op.cases import DTYPES, LAYOUTS, can_merge, lay_out, same_bits, spell  # noqa: E402

from affinity_pool.triton_kernels import links, pool, pool_padded_to, pool_to, scan, select  # noqa: E402

DEVICE = "cpu" if interpreted else "cuda"
STRETCH, BLOCK = select.STRETCH.value, select.BLOCK.value


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def home(result: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    return [tensor.cpu() for tensor in result]


def whole_numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Rows with few different links, some of them zero."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, shape, generator=generator).to(dtype)


def assert_as_by_the_reference(result: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> None:
    values, *rest = home(result)
    assert all(torch.equal(a, b) for a, b in zip(rest, expected[1:], strict=True))
    tolerance = {"rtol": torch.finfo(values.dtype).eps, "atol": 1e-6}
    torch.testing.assert_close(values, expected[0], equal_nan=True, **tolerance)


# Selection, from links that are given.

NONE = -math.inf
BEGINS = math.nan


def words(cosines: list[float], promises: list[int] | None = None) -> torch.Tensor:
    """As launch 1 leaves them: NaN is where a run begins."""
    cosine = torch.tensor(cosines, dtype=torch.float64)
    bits = cosine.view(torch.int64)
    ordered = bits ^ ((bits >> 63) & (2**63 - 1))
    begins = cosine.isnan()
    ordered[begins] = links.BEGINS.value
    if promises is not None:
        ordered[begins] += torch.tensor(promises)
    return ordered.to(DEVICE)


def expected_begins(cosines: list[float], promises: list[int] | None, share: float) -> list[bool]:
    firsts = [t for t, link in enumerate(cosines) if math.isnan(link)]
    result = [False] * len(cosines)
    for i, (first, end) in enumerate(pairwise([*firsts, len(cosines)])):
        left = affinity_pool.rows_left(end - first, share) if promises is None else min(promises[i], end - first)
        weakest = sorted(range(first + 1, end), key=cosines.__getitem__)[: left - 1]
        for t in (first, *weakest):
            result[t] = True
    return result


def assert_selected(cosines: list[float], promises: list[int] | None = None, share: float = 1.0) -> None:
    """And every byte is written, and none beyond."""
    n = len(cosines)
    nearest = torch.full((n + 1,), 7, dtype=torch.uint8, device=DEVICE)
    select.select[(triton.cdiv(n, STRETCH),)](
        words(cosines, promises), nearest, n, share, num_warps=select.NUM_WARPS, enable_fp_fusion=False
    )
    begins = expected_begins(cosines, promises, share)
    assert nearest.tolist() == [255 if begin else 1 for begin in begins] + [7]


def random_links(n: int, seed: int, kinds: int | None = None) -> list[float]:
    """A run of n rows; with so many different links."""
    generator = torch.Generator().manual_seed(seed)
    cosine = torch.rand(kinds or n, generator=generator, dtype=torch.float64) * 2 - 1
    cosine = cosine[torch.randint(0, kinds, (n - 1,), generator=generator)] if kinds else cosine[1:]
    return [BEGINS, *cosine.tolist()]


@pytest.mark.parametrize("kinds", [None, 2])
def test_of_a_run_the_weakest_links_begin_groups(kinds):
    """Of 1 row to 80, wherever they begin in a stretch, to each share that is a number of rows."""
    lengths = [1, 2, 3, STRETCH - 1, STRETCH, STRETCH + 1, 5, 2 * STRETCH, 2, 80, 1, 1, 31, 7]
    cosines = [link for seed, n in enumerate(lengths) for link in random_links(n, seed, kinds)]
    for share in (0.1, 2 / 3):
        assert_selected(cosines, share=share)
    for promise in (1, 30, 2**31 - 1):
        assert_selected(cosines, [promise] * len(lengths))
    assert_selected(cosines, [1 + 7 * i % n for i, n in enumerate(lengths)])


@pytest.mark.parametrize("n", [BLOCK, BLOCK + 1, BLOCK + 2, 3 * BLOCK + 10])
def test_a_run_of_several_blocks_is_cut_exactly(n):
    """After a row that is none of its, and before another run; the last begins far from the stretch that decides."""
    others = [BEGINS] * 3 + [BEGINS, 0.5, 0.25]
    for kinds in (None, 3):
        cosines = [*others, *random_links(n, n, kinds), *others]
        for left in (2, n // 3, n):
            assert_selected(cosines, [1] * 4 + [left] + [2] * 4)


def test_many_short_runs_are_selected_from_at_once():
    generator = torch.Generator().manual_seed(5)
    cosine = torch.rand(1500, generator=generator, dtype=torch.float64)
    cosine[torch.rand(1500, generator=generator) < 0.4] = BEGINS
    cosine[0] = BEGINS
    assert_selected(cosine.tolist(), share=0.6)


@pytest.mark.parametrize("n", [20, 300])
def test_links_that_crowd_and_links_that_are_far_apart(n):
    """Neighbouring float64s, powers of two down to the smallest, both signs, no link at all among them; all equal."""
    step = 2.0**-53
    crowds = [
        [1 - step * (t * 7 % n) for t in range(n)],
        [(-1) ** t * 2.0 ** -(t * 7 % n) for t in range(n)],
        [5e-324 * (t % 3 - 1) + 0.0 for t in range(n)],
        [NONE if t % 3 else 0.5 for t in range(n)],
        [NONE] * n,
        [1.0] * n,
    ]
    for crowd in crowds:
        for left in (2, n // 2, n):
            assert_selected([BEGINS, *crowd], [left])


@triton.jit
def left_of_runs(out: tl.tensor, begin: tl.int32, share: tl.float64) -> None:
    n = begin + tl.arange(0, 128)
    tl.store(out + tl.arange(0, 128), select.rows_left(n, tl.zeros((128,), tl.int32), share))


@pytest.mark.parametrize("begin", [1, 1450, 2**31 - 2**11])
def test_a_share_leaves_as_many_rows_as_in_python(begin):
    """On whole numbers, 1e-9 and a float64 beside them, and anywhere."""
    out = ints(*range(128))
    n = begin + 64
    shares = [m / n + nudge for m in (1, n // 3, n - 1) for nudge in (0, 1e-9 / n, 1.0001e-9 / n, -1e-9 / n)]
    shares += [0.1, 0.3, 1 / 3, 0.55, 0.7, 0.9, 1.0, 1e-12, 5e-324, math.nextafter(1, 0)]
    for share in shares:
        left_of_runs[(1,)](out, begin, share, enable_fp_fusion=False)
        assert out.tolist() == [affinity_pool.rows_left(begin + i, share) for i in range(128)], share


# The ops.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
def test_shares_of_packed_sequences(dtype, masked):
    x = whole_numbers(60, 4, dtype=dtype)
    cu_seqlens = torch.tensor([0, 0, 1, 3, 20, 20, 58, 60, 60], dtype=torch.int32)
    mask = torch.rand(60, generator=torch.Generator().manual_seed(1)) < 0.9 if masked else None
    for share in (0.3, 0.75):
        there = (cu_seqlens.to(DEVICE), mask if mask is None else mask.to(DEVICE))
        expected = reference.pool_to(x, share, cu_seqlens, mergeable=mask)
        assert_as_by_the_reference(pool_to(x.to(DEVICE), *there, share), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_counts_of_packed_sequences(dtype):
    """Ints and a tensor promise alike; one int for all sequences, and no bounds at all."""
    x = whole_numbers(60, 4, seed=1, dtype=dtype)
    cu_seqlens = torch.tensor([0, 0, 4, 8, 20, 20, 56, 60, 60], dtype=torch.int32)
    counts = [0, 4, 1, 5, 0, 20, 3, 0]
    expected = reference.pool_to(x, counts, cu_seqlens)
    there = x.to(DEVICE), cu_seqlens.to(DEVICE), None, 1.0
    assert_as_by_the_reference(pool_to(*there, counts), expected)
    assert_as_by_the_reference(pool_to(*there, None, ints(*counts)), expected)
    cu_seqlens = torch.arange(0, 61, 10, dtype=torch.int32)
    expected = reference.pool_to(x, 3, cu_seqlens)
    assert_as_by_the_reference(pool_to(x.to(DEVICE), cu_seqlens.to(DEVICE), None, 1.0, [3]), expected)
    assert_as_by_the_reference(pool_to(x.to(DEVICE), None, None, 1.0, [37]), reference.pool_to(x, 37))


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_padded_sequences(left, dtype):
    x, lengths = whole_numbers(5, 9, 4, seed=2, dtype=dtype), torch.tensor([9, 1, 0, 8, 2], dtype=torch.int32)
    x[1] = math.nan  # but for one row, padding
    mask = torch.rand(5, 9, generator=torch.Generator().manual_seed(3)) < 0.9
    counts = [4, 1, 0, 8, 1]
    there = x.to(DEVICE), lengths.to(DEVICE)
    expected = reference.pool_padded_to(x, 0.4, lengths, mergeable=mask, left_padded=left)
    assert_as_by_the_reference(pool_padded_to(*there, mask.to(DEVICE), 0.4, left_padded=left), expected)
    expected = reference.pool_padded_to(x, counts, lengths, left_padded=left)
    assert_as_by_the_reference(pool_padded_to(*there, None, 1.0, counts, left_padded=left), expected)
    assert_as_by_the_reference(pool_padded_to(*there, None, 1.0, None, ints(*counts), left), expected)
    expected = reference.pool_padded_to(x, 5, left_padded=left)
    assert_as_by_the_reference(pool_padded_to(x.to(DEVICE), None, None, 1.0, [5], left_padded=left), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_match_nothing_have_the_weakest_links(dtype):
    """Zero rows, NaN, Inf and squares beyond float32 among letters, of which equal ones are equal rows."""
    text = "AAB00?AAB^^CAa!AAA??0BBBBbC!CC"
    x, mask = spell(text, 33, dtype), can_merge(text)
    expected = reference.pool_to(x, 0.5, mergeable=mask)
    assert_as_by_the_reference(pool_to(x.to(DEVICE), None, mask.to(DEVICE), 0.5), expected)
    for count in (9, 25):
        assert_as_by_the_reference(pool_to(x.to(DEVICE), None, None, 1.0, [count]), reference.pool_to(x, count))


def test_of_equal_rows_the_earliest_begin_groups():
    x = torch.ones(50, 3, device=DEVICE)
    *_, counts = pool_to(x, ints(0, 10, 50), None, 1.0, [4, 31])
    assert counts.tolist() == [1, 1, 1, 7, *[1] * 30, 10]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_are_followed(layout):
    """Of x, flags, lengths and counts."""
    x = whole_numbers(2, 9, 5, seed=4)
    there, flags = lay_out(x.to(DEVICE), layout), torch.rand(9, 2, generator=torch.Generator().manual_seed(4)).t() < 0.8
    expected = reference.pool_padded_to(x, 0.5, mergeable=flags)
    assert_as_by_the_reference(pool_padded_to(there, None, flags.to(DEVICE), 0.5), expected)
    counts, lengths = ints(5, 0, 4, 0)[::2], ints(9, 0, 8, 0)[::2]
    expected = reference.pool_padded_to(x, [5, 4], torch.tensor([9, 8], dtype=torch.int32))
    assert_as_by_the_reference(pool_padded_to(there, lengths, None, 1.0, None, counts), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_count_is_a_threshold_between_two_links(dtype):
    """The groups of ``pool`` at window 1, in wide rows as well, whose links are rounded."""
    for dim in (40, 700):
        x = spell("AAAABBBBAAACCCCBBBAA", dim, dtype, noise=0.5).to(DEVICE)
        cosines = torch.nn.functional.cosine_similarity(x[1:].double(), x[:-1].double()).sort()[0]
        counts = [m for m in range(2, len(x)) if cosines[m - 1] - cosines[m - 2] > 1e-4]
        assert len(counts) > 12
        for m in counts[2 :: len(counts) // 2]:
            between = cosines[m - 2 : m].mean().item()
            assert same_bits(home(pool_to(x, None, None, 1.0, [m])), home(pool(x, None, None, between, 1)))


def test_fewer_rows_only_ever_join_groups():
    x = whole_numbers(40, 3, seed=6).to(DEVICE)
    before = torch.zeros(40, dtype=torch.bool)
    for count in (1, 13, 14, 39, 40):
        ids = pool_to(x, None, None, 1.0, [count])[2].cpu()
        begins = ids.diff(prepend=ints(-1).cpu()) == 1
        assert begins.sum() == count
        assert begins[before].all()
        before = begins


def test_a_link_is_the_same_wherever_it_lies():
    """Sequences alike but for their place in a tile and the batch are cut alike, close calls among them."""
    rows = spell("ABCABBCAC", 130, torch.bfloat16, noise=0.3)
    lengths = [9] * 7 + [5]
    x = torch.cat([rows] * 7 + [rows[:5]]).to(DEVICE)
    cu_seqlens = torch.cat([ints(0), ints(*lengths).cumsum(0).int()])
    *_, counts = pool_to(x, cu_seqlens, None, 0.5)
    assert counts.tolist()[:35] == counts.tolist()[:5] * 7
    padded = torch.stack([rows] * 3).to(DEVICE)
    assert pool_padded_to(padded, None, None, 0.5)[3][:, :5].tolist() == [counts.tolist()[:5]] * 3


@pytest.mark.parametrize("left", [False, True])
def test_counts_and_lengths_out_of_range_are_clamped(left):
    x = whole_numbers(6, 7, 3, seed=7)
    lengths, counts = (-(2**31), 2**31 - 1, 4, 4, 8, 7), (3, 2**31 - 1, 0, -(2**31), 5, 8)
    result = pool_padded_to(x.to(DEVICE), ints(*lengths), None, 1.0, None, ints(*counts), left)
    lengths = torch.tensor([0, 7, 4, 4, 7, 7], dtype=torch.int32)
    expected = reference.pool_padded_to(x, [0, 7, 1, 1, 5, 7], lengths, left_padded=left)
    assert_as_by_the_reference(result, expected)
    x = x[0]
    for count in counts:
        expected = reference.pool_to(x, min(max(count, 1), 7))
        assert_as_by_the_reference(pool_to(x.to(DEVICE), None, None, 1.0, None, ints(count)), expected)


def assert_makes_sense(n: int, places: int | None, result: tuple[torch.Tensor, ...]) -> None:
    """Groups partition the rows, whatever was promised; where there is room for more, zeros."""
    values, cu_seqlens_out, ids, counts = home(result)
    groups = int(counts.count_nonzero())
    assert len(values) == len(counts) == (groups if places is None else places)
    assert counts.sum() == n
    assert torch.equal(ids, torch.repeat_interleave(torch.arange(len(counts)), counts).int())
    assert counts[groups:].eq(0).all()
    assert values[groups:].eq(0).all()
    assert cu_seqlens_out.ge(0).all()
    assert cu_seqlens_out.le(groups).all()


@pytest.mark.parametrize("bounds", [(5, -7, 100, 3, 2**31 - 1, -(2**31), 9), (15,) * 4, (-1,) * 9, (14, 0), (5, 9, 12)])
def test_bounds_that_make_no_sense_give_groups_all_the_same(bounds):
    x, batch = whole_numbers(15, 3, seed=8).to(DEVICE), len(bounds) - 1
    counts = [(3 * b) % 5 for b in range(batch)]
    assert_makes_sense(15, None, pool_to(x, ints(*bounds), None, 0.5))
    assert_makes_sense(15, None, pool_to(x, ints(*bounds), None, 1.0, None, ints(*counts)))
    for rows in ([2], [15], [1, *counts[1:]]):
        promised = sum(rows) if len(rows) == batch else rows[0] * batch
        assert_makes_sense(15, promised, pool_to(x, ints(*bounds), None, 1.0, rows))


def test_of_more_groups_than_promised_the_last_takes_the_rest():
    """Ints that sequences cannot have: one of 15 rows to none, for which there is one in each anyway, and of 2 to 9."""
    x = whole_numbers(17, 3, seed=9).to(DEVICE)
    values, cu_seqlens_out, ids, counts = pool_to(x, ints(0, 15, 17), None, 1.0, [0, 1])
    assert (counts.tolist(), cu_seqlens_out.tolist(), ids.tolist()) == ([17], [0, 0, 1], [0] * 17)
    torch.testing.assert_close(values[0], x.mean(0))
    values, cu_seqlens_out, ids, counts = pool_to(x, ints(0, 15, 17), None, 1.0, [2, 9])
    assert cu_seqlens_out.tolist() == [0, 2, 4]
    assert counts[2:].tolist() == [1, 1, *[0] * 7]
    assert values[4:].eq(0).all()


def test_where_nothing_is_promised_there_is_nothing():
    x = torch.ones(4, 3, device=DEVICE)
    for rows, n in (([0, 0], 4), ([0], 4), ([0, 0], 0)):
        values, cu_seqlens_out, ids, counts = pool_to(x[:n], ints(0, n, n), None, 1.0, rows)
        assert (values.shape, counts.shape, cu_seqlens_out.tolist()) == ((0, 3), (0,), [0, 0, 0])
        assert ids.tolist() == [-1] * n
    assert pool_padded_to(x[None, :0], None, None, 1.0, [0])[1].tolist() == [0]
    assert pool_padded_to(x[None, :0].expand(0, 0, 3), None, None, 0.5)[0].shape == (0, 0, 3)


@pytest.mark.skipif(interpreted, reason="takes minutes")
def test_a_sequence_of_several_chunks():
    rows = scan.ONE_CHUNK + 100
    x = whole_numbers(rows, 3)
    for count in (1, 777, rows - 1):
        expected = reference.pool_to(x, count)
        assert_as_by_the_reference(pool_to(x.to(DEVICE), None, None, 1.0, [count]), expected)


def test_inference_tensors_are_taken_and_given():
    with torch.inference_mode():
        x = spell("AABBB", 12).to(DEVICE)
        assert pool_to(x, None, None, 1.0, [2])[3].tolist() == [2, 3]
        assert pool_padded_to(x.unsqueeze(0), None, None, 0.4)[1].tolist() == [2]
