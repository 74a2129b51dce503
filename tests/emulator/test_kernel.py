"""What the CUDA kernel promises beyond the op's contract, and what its emulator is there to see."""

from __future__ import annotations

import mmap
import subprocess

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from op.cases import DTYPES, bits, cases, same_bits, spell

import affinity_pool
import emulator
from affinity_pool.streaming import SumByEights

pytestmark = pytest.mark.skipif(emulator.missing() is not None, reason=str(emulator.missing()))
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Linux's, which Python names from 3.13 on
SIZES = (2, 7, 8, 9, 15, 16, 17, 63, 64, 65, 72, 129, 512, 521, 700)


@given(case=cases(max_size=60), left=st.booleans(), seeds=st.lists(st.integers(0, 2**32), min_size=3, max_size=3))
def test_schedules_leave_no_trace(case, left, seeds):
    """Rows kept in shared memory, blocks side by side, the order in which they start and all that follows."""
    x, lengths, mergeable = case.padded(left)
    padded = [
        emulator.pool_padded(x, lengths, mergeable=mergeable, left_padded=left, seed=seed, **case.rule)
        for seed in seeds
    ]
    packed = [emulator.pool(case.x, case.cu_seqlens, seed=seed, **case.options) for seed in seeds]
    for first, *others in (padded, packed):
        assert all(same_bits(first, other) for other in others)


@given(
    case=cases(max_size=60),
    share=st.sampled_from([0.1, 0.4, 0.75, 1.0]),
    left=st.booleans(),
    seeds=st.lists(st.integers(0, 2**32), min_size=3, max_size=3),
)
def test_schedules_leave_no_trace_in_promised_rows(case, share, left, seeds):
    x, lengths, mergeable = case.padded(left)
    padded = [
        emulator.pool_padded_to(x, share, lengths, mergeable=mergeable, left_padded=left, seed=seed) for seed in seeds
    ]
    packed = [emulator.pool_to(case.x, share, case.cu_seqlens, mergeable=case.mergeable, seed=seed) for seed in seeds]
    for first, *others in (padded, packed):
        assert all(same_bits(first, other) for other in others)


@pytest.mark.parametrize("counts", [[0, 5, 3], [-4, 2, 9], [2**31 - 1, 1, 1], [-(2**31), 0, 0]])
def test_counts_that_make_no_sense_are_clamped(counts):
    """1 at least, all rows at most; and 0 of an empty sequence."""
    x, cu_seqlens = spell("ABABAB", 8), torch.tensor([0, 3, 3, 6], dtype=torch.int32)
    expected = [min(max(counts[0], 1), 3), 0, min(max(counts[2], 1), 3)]
    assert emulator.pool_to(x, torch.tensor(counts).int(), cu_seqlens).cu_seqlens.diff().tolist() == expected
    padded = emulator.pool_padded_to(x.view(2, 3, 8), torch.tensor(counts[::2]).int())
    assert padded.lengths.tolist() == expected[::2]


def test_a_run_of_more_keys_than_a_block_caches():
    """Rows that turn by angles of which no two are equal, and of which the largest lie behind as well as before."""
    turns = torch.randperm(4400, generator=torch.Generator().manual_seed(0)).double() / 4400 * 170 + 1
    angle = turns.cumsum(0).deg2rad()
    x = torch.stack([angle.cos(), angle.sin()], 1).float()
    weakest = turns[1:].argsort(descending=True)[:1499].add(1).sort().values
    begins = torch.zeros(4400, dtype=torch.int32)
    begins[weakest] = 1
    assert torch.equal(emulator.pool_to(x, 1500).segment_ids, begins.cumsum(0).int())


@pytest.mark.parametrize("count", [301, 2**31 - 1])
def test_a_long_run_cannot_keep_more_than_it_has(count):
    x = spell("ABC" * 100, 8)
    assert emulator.pool_to(x, torch.tensor([count]).int()).counts.tolist() == [1] * 300


def test_ints_that_bounds_leave_no_room_for_are_filled_with_zeros():
    """What a GPU cannot refuse without waiting: three rows of two, one row of four."""
    x, cu_seqlens = spell("ABABAB", 8), torch.tensor([0, 2, 6], dtype=torch.int32)
    for counts, groups in (([3, 1], [1, 1, 4, 0]), ([0, 2], [2, 4]), ([3, 3], [1, 1, 1, 1, 2, 0])):
        result = emulator.pool_to(x, counts, cu_seqlens)
        assert len(result.values) == sum(counts)
        assert int(result.segment_ids.max()) < sum(counts)
        if counts != [0, 2]:  # more groups than promised: those that there is room for
            assert result.counts.tolist() == groups
            assert not result.values[-1].any()
        assert result.counts[0] == groups[0]


@pytest.mark.parametrize("bounds", [[5, 3, 0], [0, 600, 400], [-5, 2**31 - 1, 7], [400, 0, 400], [0, 0, 0]])
@pytest.mark.parametrize("keep", [0.3, 2, [300, 100], torch.tensor([7, -3]).int()])
def test_bounds_that_make_no_sense_end_with_promises_as_well(bounds, keep):
    x = spell("AABABB" * 67, 8)[:400]
    result = emulator.pool_to(x, keep, torch.tensor(bounds).int())
    assert len(result.values) == len(result.counts) <= 400
    assert not isinstance(keep, list) or len(result.values) == 400


def test_sequences_that_share_rows_write_nothing_in_front_of_the_first_group():
    """The last sequence has the rows of the first as well, and may tell of its first row that it goes on with a group:
    before it, none has begun."""
    x, bounds = torch.ones(400, 8), torch.tensor([16, 32, 32, 32, 32, 0, 400], dtype=torch.int32)
    for seed in range(60):
        values, counts = torch.full((402, 8), -7.0), torch.full((402,), -7, dtype=torch.int32)
        outputs = (values[1:401], emulator.ints(7), emulator.ints(400), counts[1:401])
        emulator.launch(x, emulator.PACKED, 6, 400, bounds, None, emulator.Rule(keep=0.01), outputs, seed)
        assert counts[[0, 401]].tolist() == [-7, -7]
        assert values[[0, 401]].eq(-7).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [64, 33, 1032])
def test_links_are_the_similarities_that_a_threshold_sees(dtype, dim):
    """At a threshold that a link equals but for its last place, both rules see the same side."""
    x = spell("A" * 90, dim, dtype, noise=0.5, seed=dim)
    for count in (7, 30, 61, 88):
        result = emulator.pool_to(x, count)
        cosine = torch.nn.functional.cosine_similarity(x[1:].double(), x[:-1].double(), dim=1)
        inner = cosine[result.segment_ids.diff() == 0].min().item()
        outer = cosine[result.segment_ids.diff() == 1].max().item()
        if inner - outer > 2e-6:
            assert same_bits(emulator.pool(x, threshold=(inner + outer) / 2, window=1), result)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_a_mean_depends_on_its_group_alone(dtype, size):
    """Wherever in a tile the group begins, and whatever comes before and after it."""
    group = spell("A" * size, 24, dtype, noise=0.3, seed=size)
    alone = emulator.pool(group, threshold=-1.0).values[0]
    for before in (1, 3, 6, 7, 8, 13):
        x = torch.cat([spell("BC" * 7, 24, dtype)[:before], group, spell("D", 24, dtype)])
        mergeable = torch.ones(x.shape[0], dtype=torch.bool)
        mergeable[:before] = mergeable[-1] = False
        result = emulator.pool(x, mergeable=mergeable, threshold=-1.0)
        assert result.counts.tolist() == [1] * before + [size, 1]
        assert torch.equal(bits(result.values[before]), bits(alone)), before


@pytest.mark.parametrize("dtype", DTYPES)
def test_up_to_eight_rows_are_summed_as_on_the_cpu(dtype):
    """A sum that begins with 0 is never -0, and the CPU's does."""
    x = torch.cat([spell("AB"[n % 2] * n, 40, dtype, noise=0.3, seed=n) for n in range(1, 9)])
    x[:, 3], x[:, 20] = -0.0, 0.0
    ours, theirs = (pool(x, threshold=0.6) for pool in (emulator.pool, affinity_pool.pool))
    assert ours.counts.tolist() == list(range(1, 9))
    assert same_bits(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_long_groups_are_summed_in_the_order_that_is_stated(dtype):
    """By eights, blocks of eight joined to larger ones, what is left last: bit for bit, of every length to 600."""
    x = spell("A" * 600, 3, dtype, noise=0.3)
    sums = SumByEights(x)
    expected = []
    for n, row in enumerate(x, 1):
        sums.add(row)
        expected.append((sums.total() * torch.tensor(1.0).div(n)).to(dtype) if n > 1 else x[0])
    lengths = torch.arange(1, len(x) + 1, dtype=torch.int32)
    for batch in lengths.split(60):
        means = emulator.pool_padded(x.expand(len(batch), *x.shape), batch, threshold=-1.0).values[:, 0]
        assert torch.equal(bits(means), bits(torch.stack(expected)[batch.long() - 1]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_long_groups_meet_where_a_tile_begins(dtype):
    """The tile adds up the sums of the one and hands on a sum of the other."""
    x = spell("A" * 24 + "B" * 17 + "A" * 15 + "C" * 72 + "D" * 9, 520, dtype, noise=0.05)
    for _ in range(3):
        result = emulator.pool(x, threshold=0.7)
        assert result.counts.tolist() == [24, 17, 15, 72, 9]
        for group, value in zip(x.split(result.counts.tolist()), result.values, strict=True):
            alone = emulator.pool(group.contiguous(), threshold=-1.0).values[0]
            assert torch.equal(bits(value), bits(alone))


@pytest.mark.parametrize("dim", [8, 1040])
def test_every_row_that_a_block_watches_may_open_a_group(dim):
    x = torch.ones(1500, dim, dtype=torch.float16)
    for _ in range(16):
        assert emulator.pool(x, threshold=2.0).segment_ids.tolist() == list(range(1500))


def test_both_words_of_a_prefix_are_of_this_launch():
    """One may be there before the other; what a launch before has left there is another group's length."""
    one, many = torch.ones(400, 4), spell("AAABB" * 80, 4)
    for seed in range(40):
        assert emulator.pool(one, seed=seed).counts.tolist() == [400]
        assert emulator.pool(many, threshold=0.9, seed=seed).counts.tolist() == [3, 2] * 80


@pytest.mark.parametrize("second", [168, 171])
def test_a_tile_may_wait_for_one_that_hands_on_nothing(second):
    """More than 32 bounds, which make no sense: tile 22 goes on with a group that ended in tile 21, or before it."""
    x = torch.ones(400, 8)
    bounds = torch.tensor([0, second, 160, 0, *[400] * 61], dtype=torch.int32)
    for _ in range(5):
        assert 0 <= int(emulator.pool(x, bounds, threshold=-1.0).cu_seqlens[-1]) <= 400


def test_sequences_may_begin_at_odd_addresses():
    """Rows of whole chunks, a whole number of chunks apart, but not from sequence to sequence."""
    rows = spell("AABBBCAA" * 3, 8, noise=0.1)
    x = torch.zeros(2 * 24 * 8 + 2).as_strided((2, 24, 8), (24 * 8 + 1, 8, 1))
    x[0], x[1] = rows, rows.flip(0)
    for left in (False, True):
        found, expected = (emulator.pool_padded(batch, left_padded=left) for batch in (x, x.contiguous()))
        assert same_bits(found, expected)


@pytest.mark.parametrize("text", ["A" * 1500, "AB" * 700, "ABC" * 500, ("A" * 60 + "B") * 20, "AAAB" * 300])
@pytest.mark.parametrize("window", [1, 3, 32])
def test_look_back_reaches_beyond_what_a_block_can_watch(text, window):
    """A block of 64 threads watches 512 rows; these are groups, and periods, of up to 1500."""
    x = spell(text, 12, noise=0.05, seed=1)
    rule = {"threshold": 0.8, "window": window}
    expected = affinity_pool.pool(x, **rule)
    for seed in range(3):
        result = emulator.pool(x, seed=seed, **rule)
        assert torch.equal(result.counts, expected.counts)
        assert torch.equal(result.segment_ids, expected.segment_ids)
        torch.testing.assert_close(result.values, expected.values)


@pytest.mark.parametrize("window", [2, 3, 5, 32])
def test_matches_at_the_edge_of_the_window_hold_a_long_group_together(window):
    """Every row's only match lies exactly ``window`` rows back; the first row matches those that start it off."""
    x = torch.cat([torch.ones(1, window), torch.eye(window).repeat(400 // window, 1)])
    for seed in range(6):
        assert emulator.pool(x, threshold=0.1, window=window, seed=seed).counts.tolist() == [x.shape[0]]


@pytest.mark.parametrize("size", range(16, 24))
def test_sums_of_a_long_group_end_with_it(size):
    """Short groups begin and end in the tile in which the long one ends."""
    x = spell("A" * size + "BBCCCDD", 40, noise=0.05)
    ours, theirs = (pool(x, threshold=0.7) for pool in (emulator.pool, affinity_pool.pool))
    assert ours.counts.tolist() == [size, 2, 3, 2]
    torch.testing.assert_close(ours.values, theirs.values)


def test_long_groups_are_summed_in_blocks():
    """65,000 equal rows: added one by one in float32, they would be off by a hundred times that."""
    x = torch.full((65000, 4), 0.1)
    mean = emulator.pool(x, threshold=-1.0).values[0]
    assert ((mean.double() - x[0].double()).abs() / x[0].double()).max() < 4e-7


def test_a_group_of_more_rows_than_16_bits_count():
    """Its length goes from tile to tile; a mean that forgot 65,536 rows of it would be another."""
    rows = 65536 + 700
    x = torch.arange(rows, dtype=torch.float32).div(rows).add(1).unsqueeze(1).expand(rows, 2).contiguous()
    x = torch.cat([x, -x[:5]])
    result = emulator.pool(x, threshold=0.9, window=1)
    assert result.counts.tolist() == [rows, 5]
    assert result.segment_ids.tolist() == [0] * rows + [1] * 5
    torch.testing.assert_close(result.values[0].double(), x[:rows].double().mean(0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [64, 33])
def test_rows_and_sequences_may_lie_far_apart(dtype, dim):
    """Offsets beyond 2^31 elements, in memory of which the pages that are touched exist."""
    text, apart = "AAABBAACCCCCCCCCCAAB", 2**28 + 8
    near = torch.stack([spell(text, dim, dtype, noise=0.1, seed=seed) for seed in range(2)])
    size = near.element_size()
    memory = mmap.mmap(-1, 42 * apart * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    far = torch.frombuffer(memory, dtype=dtype).as_strided(near.shape, (21 * apart, apart, 1))
    far.copy_(near)
    for window in (1, 3, 11):
        rule = {"threshold": 0.8, "window": window}
        assert same_bits(emulator.pool(far[0], **rule), emulator.pool(near[0], **rule))
        for left in (False, True):
            found, expected = (emulator.pool_padded(x, left_padded=left, **rule) for x in (far, near))
            assert same_bits(found, expected)


@pytest.mark.parametrize(("tile", "stride", "chunk"), [(2**20, 4096, 5), (2**28 - 1, 8, 0), (7, 2**31, 2**29)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_have_offsets_beyond_32_bits(dtype, tile, stride, chunk):
    """Arithmetic alone: a call with so many needs terabytes."""
    in_chunk = 16 // dtype.itemsize
    assert emulator.sum_offset(dtype, tile, stride, chunk) == tile * stride + chunk * in_chunk


def test_more_groups_than_16_bits_count():
    x = torch.ones(65536 + 700, 1)
    ids = torch.arange(len(x), dtype=torch.int32)
    result = emulator.pool(x, threshold=2.0, window=1)
    assert torch.equal(result.segment_ids, ids)
    assert result.cu_seqlens.tolist() == [0, len(x)]
    padded = emulator.pool_padded(x.unsqueeze(0), threshold=2.0, window=1, left_padded=True)
    assert torch.equal(padded.segment_ids[0], ids)


def test_words_of_a_launch_are_told_from_those_of_all_others():
    """A tile that no launch has used for 1, 3, 7 ... 4095 launches: a tag that was cut would be the same again. A fresh
    workspace of the emulator is sixteen launches before the end of its tags: these go beyond it."""
    first, second = (torch.randn(5000, 1, generator=torch.Generator().manual_seed(seed)).sign() for seed in (1, 2))
    expected = affinity_pool.pool(second)
    for launches in range(13):
        emulator.pool(first)
        for _ in range(2**launches - 1):
            emulator.pool(torch.ones(1, 1))
        assert torch.equal(emulator.pool(second).segment_ids, expected.segment_ids), launches


@given(
    bounds=st.lists(st.sampled_from([-(2**31), -1, 0, 3, 20, 39, 40, 41, 500, 2**31 - 1]), min_size=2, max_size=7),
    window=st.sampled_from([1, 3, 32]),
)
def test_bounds_that_make_no_sense_end_and_stay_inside(bounds, window):
    """A GPU cannot look at them without waiting. Whether they stay inside is the address sanitizer's to say, below."""
    x = spell("AAAAB" * 8, 16, noise=0.1)
    before = x.clone()
    index = torch.tensor(bounds, dtype=torch.int32)
    result = emulator.pool(x, index, threshold=0.8, window=window)
    assert 0 <= int(result.cu_seqlens[-1]) <= 40
    batch = x.expand(len(bounds), 40, 16)
    for left in (False, True):
        padded = emulator.pool_padded(batch, index, threshold=0.8, window=window, left_padded=left)
        clamped = index.clamp(0, 40)
        sensible = emulator.pool_padded(batch, clamped, threshold=0.8, window=window, left_padded=left)
        assert same_bits(padded, sensible)
    assert torch.equal(x, before)


def test_calls_of_all_sizes_share_a_workspace():
    """A tile's words of an earlier call are never taken for this one's."""
    for n in (400, 9, 390, 1, 200, 57, 400):
        x = spell(("A" * 5 + "B" * 12) * 24, 16, noise=0.1)[:n]
        assert torch.equal(emulator.pool(x).counts, affinity_pool.pool(x).counts)


@pytest.mark.parametrize(("variant", "runs"), [("asan", ["2000", "5000", "12"]), ("asan", ["300", "0", "2000"])])
def test_sanitizers_find_nothing(variant, runs):
    """Addresses and undefined behaviour; `make sanitize` runs more of it, and the thread sanitizer."""
    fuzz = subprocess.run([emulator.build(variant), *runs], capture_output=True, text=True)
    assert fuzz.returncode == 0, fuzz.stdout[-500:] + fuzz.stderr[-3000:]
