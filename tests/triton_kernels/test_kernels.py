"""What only the Triton kernels have: a scan of their own, clamped contents, sums that no layout reorders."""

from __future__ import annotations

import os

import pytest
import torch

import affinity_pool
from affinity_pool import reference

pytest.importorskip("triton", reason="triton is not installed")
interpreted = os.environ.get("TRITON_INTERPRET") == "1"
if not interpreted and affinity_pool.triton_kernels.missing():
    pytest.skip("needs a GPU; test_interpreter.py runs this without", allow_module_level=True)

from op.cases import can_merge, spell  # noqa: E402

from affinity_pool.triton_kernels import pool, pool_padded, scan  # noqa: E402

DEVICE = "cpu" if interpreted else "cuda"
WINDOWS = [1, 2, 3, 4, 5, 8, 9, 32]


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def groups_one_by_one(k: list[int], window: int) -> list[int]:
    """Ids of the groups, from 0, by csrc/algebra.h's rule."""
    ids, length = [], 0
    for distance in k:
        joins = distance <= length
        length = min(length + 1, window) if joins else 1
        ids.append((ids[-1] if ids else -1) + (not joins))
    return ids


def scanned(
    k: torch.Tensor, lengths: torch.Tensor, window: int, left: bool, run_rows: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, starts and numbers of groups, by runs of so many rows; -7 is where nothing was written."""
    (batch, rows), states = k.shape, scan.states_of(window)
    chunks = -(-rows // (run_rows * scan.RUNS.value))
    ids, starts, groups, maps = (
        torch.full(shape, -7, dtype=torch.int32, device=DEVICE)
        for shape in ((batch, rows), (batch, rows + 1), (batch,), (batch, chunks, states))
    )
    k, lengths = k.to(DEVICE), lengths.to(DEVICE)
    if chunks > 1:
        scan.maps_of_chunks[(batch, chunks)](
            k, lengths, maps, rows, run_rows, window, left, states, num_warps=scan.NUM_WARPS
        )
    scan.scan[(batch, chunks)](
        k, lengths, maps if chunks > 1 else None, ids, starts, groups, rows, rows, run_rows, window, left, states,
        num_warps=scan.NUM_WARPS,
    )  # fmt: skip
    return ids, starts, groups


def assert_scanned(k: torch.Tensor, lengths: torch.Tensor, window: int, left: bool, run_rows: int) -> None:
    """The first valid row of each sequence is told that it matches nothing; the rest of k is as given."""
    rows = k.shape[1]
    first = rows - lengths if left else torch.zeros_like(lengths)
    k[torch.arange(len(k)), first.clamp(max=rows - 1).long()] = 255
    ids, starts, groups = scanned(k, lengths, window, left, run_rows)
    for b in range(len(k)):
        begin, end = int(first[b]), int(first[b] + lengths[b])
        expected = groups_one_by_one(k[b, begin:end].tolist(), window)
        count = len(set(expected))
        column = rows - count if left else 0
        assert groups[b] == count
        assert ids[b].tolist() == [-1] * begin + [column + g for g in expected] + [-1] * (rows - end)
        opened = [begin + t for t, g in enumerate(expected) if t == 0 or g != expected[t - 1]]
        assert starts[b, : count + 1].tolist() == [*opened, end]
        assert starts[b, count + 1 :].eq(-7).all()


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("rows", [1, 255, 256, 257, 700])
def test_the_scan_of_runs_is_the_scan_of_rows(window, left, rows):
    """Bytes at random, no two alike, and runs of no match, of matches just out of reach and just within."""
    generator = torch.Generator().manual_seed(rows)
    k = torch.randint(1, window + 1, (6, rows), generator=generator, dtype=torch.uint8)
    k[1, torch.rand(rows, generator=generator) < 0.3] = 255
    k[2] = 1
    k[3] = window
    k[4] = 255
    lengths = torch.tensor([rows, rows, rows, rows, rows, rows // 2], dtype=torch.int32)
    assert_scanned(k, lengths, window, left, scan.rows_of_run(rows))


def chains(window: int, rows: int) -> torch.Tensor:
    """Rows that match ``window`` rows back alone: they join for ever once so many are open, and never while fewer are.

    So rows at the start decide all: one group, and, of a row less, none. In the other two, rows halfway change it.
    """
    k = torch.full((4, rows), window, dtype=torch.uint8)
    k[0, :window] = k[1, : window - 1] = k[2, :window] = 1
    k[1, window - 1] = k[2, rows // 2] = 255
    k[3, rows // 2 : rows // 2 + window] = 1
    return k


def groups_around_chunks(rows: int) -> torch.Tensor:
    """One for all; one that begins with each chunk of 256, a row early, a row late; long ones; one for each row."""
    k = torch.ones(6, rows, dtype=torch.uint8)
    for b, shift in ((1, 0), (2, -1), (3, 1)):
        k[b, 256 + shift :: 256] = 255
    k[4, 100] = k[4, 650] = 255
    k[5] = 255
    return k


@pytest.mark.parametrize("window", WINDOWS)
def test_the_scan_of_chunks_is_the_scan_of_rows(window):
    rows = 700
    k = torch.cat([chains(window, rows), groups_around_chunks(rows)])
    random = torch.randint(1, window + 1, (2, rows), generator=torch.Generator().manual_seed(window), dtype=torch.uint8)
    assert_scanned(torch.cat([k, random]), torch.full((12,), rows, dtype=torch.int32), window, False, run_rows=1)


@pytest.mark.parametrize("window", [3, 32])
@pytest.mark.parametrize("left", [False, True])
def test_chunks_without_rows_and_with_few_change_nothing(window, left):
    """Valid rows that end, or begin, in each of three chunks of 512, at their edges and in the midst of a run."""
    rows, lengths = 1100, [0, 1, 75, 76, 77, 512, 513, 589, 1100]
    generator = torch.Generator().manual_seed(window)
    k = torch.randint(1, window + 1, (len(lengths), rows), generator=generator, dtype=torch.uint8)
    assert_scanned(k, torch.tensor(lengths, dtype=torch.int32), window, left, run_rows=2)


def test_as_many_chunks_as_there_may_be_are_composed():
    rows = scan.CHUNKS.value * scan.RUNS.value
    k = torch.randint(1, 4, (1, rows), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert_scanned(k, torch.tensor([rows], dtype=torch.int32), 3, False, run_rows=1)


@pytest.mark.parametrize("rows", [1, 255, 2**14, 2**14 + 1, 2**19, 2**19 + 1, 10**6, 2**30 + 1, 2**31 - 2**10])
def test_runs_of_chunks_cover_the_rows_and_fit_into_32_bits(rows):
    chunk = scan.RUNS.value * scan.rows_of_run(rows)
    chunks = -(-rows // chunk)
    assert chunks <= (1 if rows <= 2**14 else scan.CHUNKS.value)
    assert chunks * chunk <= 2**31


@pytest.fixture
def shortest_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 256 rows, a row a run."""
    monkeypatch.setattr(scan, "rows_of_run", lambda rows: 1)


@pytest.mark.usefixtures("shortest_chunks")
@pytest.mark.parametrize("window", [1, 3])
def test_sequences_across_chunks_are_pooled_as_by_the_reference(window):
    """Packed: similar letters at random, text and NaN among them; a period; one letter; sequences of no rows."""
    generator = torch.Generator().manual_seed(window)
    text = "".join("ABCDa?"[i] for i in torch.randint(0, 6, (180,), generator=generator).clamp(max=5).tolist())
    text += "ABC" * 30 + "A" * 250
    x, mask = spell(text, 3), can_merge(text)
    cu_seqlens = torch.tensor([0, 0, 180, 256, 256, 270, 520, 520], dtype=torch.int32)
    result = pool(x.to(DEVICE), cu_seqlens.to(DEVICE), mask.to(DEVICE), 0.9, window)
    expected = reference.pool(x, cu_seqlens, mergeable=mask, threshold=0.9, window=window)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(result[1:], expected[1:], strict=True))
    assert torch.allclose(result[0].cpu(), expected[0], atol=1e-6, equal_nan=True)


@pytest.mark.usefixtures("shortest_chunks")
def test_padded_sequences_across_chunks_are_pooled_as_by_the_reference():
    """On the left, with a length out of range, which is clamped."""
    x = spell("AABCBBCA" * 67, 3).view(2, 268, 3)
    result = pool_padded(x.to(DEVICE), ints(2**31 - 1, 260), None, 0.9, 2, True)
    lengths = torch.tensor([268, 260], dtype=torch.int32)
    expected = reference.pool_padded(x, lengths, threshold=0.9, window=2, left_padded=True)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(result[1:], expected[1:], strict=True))


def test_many_short_sequences_begin_where_they_begin():
    x = torch.ones(300, 3)
    cuts = torch.randint(0, 301, (400,), generator=torch.Generator().manual_seed(0)).sort()[0].tolist()
    cu_seqlens = ints(0, *cuts, 300)
    values, cu_seqlens_out, segment_ids, counts = pool(x.to(DEVICE), cu_seqlens, None, 0.9, 3)
    lengths = cu_seqlens.diff()
    assert torch.equal(counts, lengths[lengths > 0])
    assert torch.equal(cu_seqlens_out, torch.cat([ints(0), (lengths > 0).cumsum(0).int()]))
    assert torch.equal(segment_ids, torch.repeat_interleave(torch.arange(len(counts), device=DEVICE), counts).int())
    assert values.eq(1).all()


@pytest.mark.parametrize("left", [False, True])
def test_lengths_out_of_range_are_clamped(left):
    x = spell("AABBC" * 3, 12).view(3, 5, 12)
    result = pool_padded(x.to(DEVICE), ints(-(2**31), 2**31 - 1, 6), None, 0.9, 3, left)
    expected = reference.pool_padded(x, torch.tensor([0, 5, 5], dtype=torch.int32), threshold=0.9, left_padded=left)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(result[1:], expected[1:], strict=True))


@pytest.mark.parametrize("bounds", [(5, -7, 100, 3, 2**31 - 1, -(2**31), 9), (15,) * 4, (-1,) * 9, (14, 0)])
def test_bounds_that_make_no_sense_give_groups_all_the_same(bounds):
    assert_groups_all_the_same(spell("AABBC" * 3, 12), bounds)


@pytest.mark.usefixtures("shortest_chunks")
def test_bounds_that_make_no_sense_give_groups_in_chunks_too():
    assert_groups_all_the_same(spell("AABBC" * 60, 3), (400, 256, -7, 256, 2**31 - 1, -(2**31), 100))


def assert_groups_all_the_same(x: torch.Tensor, bounds: tuple[int, ...]) -> None:
    values, cu_seqlens_out, segment_ids, counts = pool(x.to(DEVICE), ints(*bounds), None, 0.9, 3)
    assert values.shape == (len(counts), x.shape[1])
    assert int(counts.sum()) == len(x)
    assert torch.equal(segment_ids, torch.repeat_interleave(torch.arange(len(counts), device=DEVICE), counts).int())
    assert cu_seqlens_out.ge(0).all()
    assert cu_seqlens_out.le(len(counts)).all()


def test_a_close_pair_is_decided_alike_wherever_it_lies():
    """A pair within 1e-7 of the threshold, at each row of a tile and each lag of a pass, packed and padded."""
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(300, 300, generator=generator, dtype=torch.float64))[0][:12]
    a, b, like_a = 3 * basis[0], 0.8 * basis[0] + 0.6 * basis[1], 0.85 * basis[0] - 0.52 * basis[1]
    a, b, like_a, *others = (row.bfloat16() for row in (a, b, like_a, *basis[2:]))
    sequences = [[*others[:n], a, *[like_a] * (n % 6), b] for n in range(9)]
    rows = torch.stack([row for sequence in sequences for row in sequence]).to(DEVICE)
    lengths = ints(*map(len, sequences))
    cu_seqlens = torch.cat([ints(0), lengths.cumsum(0).int()])
    padded = torch.nn.utils.rnn.pad_sequence(rows.split(lengths.tolist()), batch_first=True)
    cosine = torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0).item()
    outcomes = set()
    for nudge in (-1e-7, 1e-7):
        _, _, ids, _ = pool(rows, cu_seqlens, None, cosine + nudge, 6)
        joined = {bool(ids[end - 1] == ids[end - 2]) for end in cu_seqlens[1:].tolist()}
        _, _, ids, _ = pool_padded(padded, lengths, None, cosine + nudge, 6)
        joined |= {bool(row[n - 1] == row[n - 2]) for row, n in zip(ids, lengths.tolist(), strict=True)}
        assert len(joined) == 1, nudge
        outcomes |= joined
    assert outcomes == {True, False}, "the pair is not close enough to be a test"


@pytest.mark.skipif(interpreted, reason="the interpreter has but one way to load")
def test_misaligned_rows_are_decided_as_aligned_ones():
    """The compiler then loads element by element; sums must not notice."""
    x = spell("A" * 40, 256, torch.bfloat16, noise=0.62).to(DEVICE)
    roomy = torch.full((40 * 256 + 1,), float("nan"), dtype=torch.bfloat16, device=DEVICE)
    roomy[1:] = x.flatten()
    for threshold in torch.linspace(0.5, 0.9, 5).tolist():
        aligned, misaligned = (pool(rows, None, None, threshold, 3) for rows in (x, roomy[1:].view(40, 256)))
        assert all(torch.equal(p, q) for p, q in zip(aligned, misaligned, strict=True))


@pytest.mark.parametrize("left", [False, True])
def test_inference_tensors_are_taken_and_given(left):
    with torch.inference_mode():
        x = spell("AABBB", 12).to(DEVICE)
        assert pool(x, None, None, 0.9, 3)[3].tolist() == [2, 3]
        assert pool_padded(x.unsqueeze(0), None, None, 0.9, 3, left)[1].tolist() == [2]
