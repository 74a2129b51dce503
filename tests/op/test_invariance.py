"""What a result does not depend on: packing, padding, batch mates, order, offset, threads, blocks, the run."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import affinity_pool
from affinity_pool import Pooled, PooledPadded

from .cases import DTYPES, Case, cases, same_bits, spell
from .implementations import Implementation
from .truth import assert_obeys_contract


def unpacked(result: Pooled, lengths: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """(values, counts, segment_ids from 0) of each sequence."""
    sizes = result.cu_seqlens.diff().tolist()
    ids = result.segment_ids.split(lengths.tolist())
    return [
        (values, counts, segment_ids - segment_ids[:1])
        for values, counts, segment_ids in zip(result.values.split(sizes), result.counts.split(sizes), ids, strict=True)
    ]


def unpadded(result: PooledPadded, lengths: torch.Tensor, left: bool) -> list[tuple[torch.Tensor, ...]]:
    width = result.counts.shape[1]
    out = []
    for b, (n, m) in enumerate(zip(lengths.tolist(), result.lengths.tolist(), strict=True)):
        valid = slice(width - n, width) if left else slice(0, n)
        filled = slice(width - m, width) if left else slice(0, m)
        ids = result.segment_ids[b, valid]
        out.append((result.values[b, filled], result.counts[b, filled], ids - filled.start if n else ids))
    return out


def all_same(a: list[tuple[torch.Tensor, ...]], b: list[tuple[torch.Tensor, ...]]) -> bool:
    return len(a) == len(b) and all(map(same_bits, a, b))


@pytest.mark.each_instruction_set
@given(case=cases(), left=st.booleans())
def test_packed_equals_padded_bit_for_bit(implementation: Implementation, case: Case, left: bool):
    x, lengths, mergeable = case.padded(left)
    padded = implementation.pool_padded(x, lengths, mergeable=mergeable, left_padded=left, **case.rule)
    packed = implementation.pool(case.x, case.cu_seqlens, **case.options)
    assert all_same(unpacked(packed, lengths), unpadded(padded, lengths, left))


@given(case=cases())
def test_a_sequence_ignores_its_batch_mates(implementation: Implementation, case: Case):
    together = implementation.pool(case.x, case.cu_seqlens, **case.options)
    sequences = case.x.split(case.lengths.tolist())
    masks = [None] * len(sequences) if case.mergeable is None else case.mergeable.split(case.lengths.tolist())
    alone = [
        unpacked(implementation.pool(x, mergeable=mask, **case.rule), case.lengths[b : b + 1])[0]
        for b, (x, mask) in enumerate(zip(sequences, masks, strict=True))
    ]
    assert all_same(unpacked(together, case.lengths), alone)


@given(case=cases(), left=st.booleans(), data=st.data())
def test_permuting_the_batch_permutes_the_result(implementation: Implementation, case: Case, left, data):
    x, lengths, mergeable = case.padded(left)
    order = torch.tensor(data.draw(st.permutations(range(len(case.sequences)))), dtype=torch.long)
    call = functools.partial(implementation.pool_padded, left_padded=left, **case.rule)
    straight = call(x, lengths, mergeable=mergeable)
    shuffled = call(x[order], lengths[order], mergeable=None if mergeable is None else mergeable[order])
    assert same_bits([t[order] for t in straight], shuffled)


@pytest.mark.each_instruction_set
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [67, 256])
def test_a_close_decision_depends_on_the_two_rows_alone(implementation: Implementation, dtype, dim):
    """Pairs within 1e-7 of the threshold, at every offset and distance, in every neighbourhood and window."""
    outcomes = set()
    for seed in range(6 if implementation.name == "cpu" else 1):
        a, b, filler, strangers = close_pair(dim, dtype, seed)
        cosine = torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0).item()
        for nudge in (-1e-7, -2e-8, 2e-8, 1e-7):
            threshold = cosine + nudge
            alone = implementation.pool(torch.stack([a, b]), threshold=threshold, window=1).counts.tolist() == [2]
            outcomes.add(alone)
            for window in (1, 2, 3, 4, 8, 32):
                before = [[*strangers[:n], a, b, *strangers[n:]] for n in range(6)]
                between = [[*strangers[:n], a, *[filler] * k, b] for k in range(window) for n in (0, 1)]
                sequences = before + between
                cu_seqlens = torch.tensor([0, *map(len, sequences)]).cumsum(0).int()
                rows = torch.stack([row for sequence in sequences for row in sequence])
                ids = implementation.pool(rows, cu_seqlens, threshold=threshold, window=window).segment_ids
                starts = cu_seqlens.tolist()
                place_of_b = [starts[n] + n + 1 for n in range(6)] + [end - 1 for end in starts[7:]]
                joined = [bool(ids[t] == ids[t - 1]) for t in place_of_b]
                assert joined == [alone] * len(sequences), (seed, nudge, window)
    assert implementation.name != "cpu" or outcomes == {True, False}, "the pairs are not close enough to be a test"


def close_pair(dim: int, dtype: torch.dtype, seed: int) -> tuple[torch.Tensor, ...]:
    """Rows a and b of cosine 0.8; a row that matches a (0.85) and not b; rows that match nothing."""
    generator = torch.Generator().manual_seed(seed)
    u, v, *strangers = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0][:8]
    a, b, filler = u * 3, 0.8 * u + 0.6 * v, 0.85 * u - math.sqrt(1 - 0.85**2) * v
    return a.to(dtype), b.to(dtype), filler.to(dtype), torch.stack(strangers).to(dtype)


def long_input(dtype: torch.dtype, layout: str) -> dict[str, torch.Tensor]:
    """2.5 MB or so: several blocks of half a megabyte, groups that span them, and work enough for three threads."""
    n = 1300 if dtype == torch.float32 else 2600
    x = spell("A" * n, 480, dtype, noise=0.62, seed=3)
    x[:3] = spell("BCD", 480, dtype)
    if layout == "one group":
        x = spell("A" * n, 480, dtype, noise=0.2)
    if layout == "two sequences":
        return {"x": x, "cu_seqlens": torch.tensor([0, n // 2 + 7, n], dtype=torch.int32)}
    return {"x": x}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["one sequence", "two sequences", "one group"])
def test_threads_do_not_change_a_bit(dtype, layout):
    arguments, results = long_input(dtype, layout), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(affinity_pool.pool(**arguments, threshold=0.8, window=3))
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])
    most = results[0].counts.max()
    assert most > (1200 if layout == "one group" else 5), most
    assert results[0].counts.shape[0] == 1 or most < 600


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("left", [False, True])
def test_threads_do_not_change_a_bit_of_a_padded_batch(threads, left):
    x = torch.stack([spell("A" * 700, 480, noise=0.45, seed=seed) for seed in range(3)])
    lengths = torch.tensor([700, 0, 431], dtype=torch.int32)
    torch.set_num_threads(threads)
    together = affinity_pool.pool_padded(x, lengths, threshold=0.8, left_padded=left)
    torch.set_num_threads(1)
    for b in range(3):
        alone = affinity_pool.pool_padded(x[b : b + 1], lengths[b : b + 1], threshold=0.8, left_padded=left)
        assert same_bits([t[b : b + 1] for t in together], alone)


@pytest.mark.each_instruction_set
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("window", "threshold", "noise"), [(1, 0.8, 0.5), (3, 0.8, 0.55), (32, 0.8, 0.62)])
def test_blocks_and_waves_leave_no_trace(threads, window, threshold, noise):
    """3000 narrow rows are three blocks of 1024: rows, norms and the open group cross from one into the next."""
    torch.set_num_threads(threads)
    x = spell("A" * 3000, 24, noise=noise, seed=window)
    rule = {"threshold": threshold, "window": window}
    whole = affinity_pool.pool(x, **rule)
    assert 20 < whole.counts.shape[0] < 1500
    assert_obeys_contract(x, whole, **rule)
    # Any group's start is a place to cut: what follows does not know what came before, nor where blocks were.
    for group in (1, 7, 19):
        start = int(whole.counts[:group].sum())
        rest = affinity_pool.pool(x[start:], **rule)
        assert torch.equal(rest.values, whole.values[group:])
        assert torch.equal(rest.counts, whole.counts[group:])


def test_wide_rows_make_blocks_of_few(implementation: Implementation):
    """Rows of 24 KB: blocks of 32 rows rather than half a megabyte."""
    x = spell("AB" * 17 + "A" * 40, 6000, noise=0.5)
    assert_obeys_contract(x, implementation.pool(x, threshold=0.75), threshold=0.75, window=3)


@given(case=cases())
def test_a_second_run_gives_the_same_bits(implementation: Implementation, case: Case):
    first, second = (implementation.pool(case.x, case.cu_seqlens, **case.options) for _ in range(2))
    assert same_bits(first, second)
