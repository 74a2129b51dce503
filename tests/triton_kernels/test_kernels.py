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

from op.cases import spell  # noqa: E402

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
    first = rows - lengths if left else torch.zeros_like(lengths)
    k[torch.arange(6), first.clamp(max=rows - 1).long()] = 255
    ids, starts = (torch.full((6, n), -7, dtype=torch.int32, device=DEVICE) for n in (rows, rows + 1))
    groups = torch.empty(6, dtype=torch.int32, device=DEVICE)
    arguments = (k.to(DEVICE), lengths.to(DEVICE), ids, starts, groups, rows, window, left, scan.states_of(window))
    scan.scan[(6,)](*arguments, num_warps=scan.NUM_WARPS)
    for b in range(6):
        begin, end = int(first[b]), int(first[b] + lengths[b])
        expected = groups_one_by_one(k[b, begin:end].tolist(), window)
        count = len(set(expected))
        column = rows - count if left else 0
        assert groups[b] == count
        assert ids[b].tolist() == [-1] * begin + [column + g for g in expected] + [-1] * (rows - end)
        opened = [begin + t for t, g in enumerate(expected) if t == 0 or g != expected[t - 1]]
        assert starts[b, : count + 1].tolist() == [*opened, end]
        assert starts[b, count + 1 :].eq(-7).all()


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


@pytest.mark.parametrize("bounds", [(5, -7, 100, 3, 2**31 - 1, -(2**31), 9), (15,) * 4, (0,), (-1,) * 9, (14, 0)])
def test_bounds_that_make_no_sense_give_groups_all_the_same(bounds):
    x = spell("AABBC" * 3, 12).to(DEVICE)
    values, cu_seqlens_out, segment_ids, counts = pool(x, ints(*bounds), None, 0.9, 3)
    assert values.shape == (len(counts), 12)
    assert int(counts.sum()) == 15
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
