"""A stream gives what one call gives, bit for bit, however it is cut."""

from __future__ import annotations

import copy
import pickle
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from affinity_pool import AffinityPooler, Closed, pool, streaming

from .cases import DTYPES, LAYOUTS, Case, cases, lay_out, same_bits, spell


def stream(pooler: AffinityPooler, chunks: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    parts = [pooler.step(chunk) for chunk in chunks]
    if any(chunk.shape[0] for chunk in chunks):
        parts.append(pooler.flush())
    return torch.cat([values for values, _ in parts]), torch.cat([counts for _, counts in parts])


@pytest.mark.each_instruction_set
@given(
    case=cases(max_sequences=1, max_size=40, alphabet="AAAABBC0?^!", masked=False),
    cuts=st.lists(st.integers(0, 40), max_size=8),
    layout=st.sampled_from(LAYOUTS),
)
def test_any_chunking_equals_one_call(case: Case, cuts, layout):
    edges = sorted(min(cut, case.x.shape[0]) for cut in cuts)
    chunks = [lay_out(chunk, layout) for chunk in case.x.tensor_split(edges)]
    offline = pool(case.x, **case.rule)
    assert same_bits(stream(AffinityPooler(**case.rule), chunks), (offline.values, offline.counts))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("window", "noise"), [(1, 0.5), (3, 0.6), (32, 0.63)])
def test_row_by_row_equals_one_call_over_long_groups(dtype, window, noise):
    x = spell("A" * 300, 129, dtype, noise=noise)
    offline = pool(x, threshold=0.8, window=window)
    assert 1 < offline.counts.shape[0] < 100
    streamed = stream(AffinityPooler(threshold=0.8, window=window), list(x.split(1)))
    assert same_bits(streamed, (offline.values, offline.counts))


def test_a_group_comes_out_of_the_call_that_closes_it():
    x, pooler = spell("AAABB", 16), AffinityPooler(threshold=0.9)
    assert [pooler.step(row)[1].tolist() for row in x.split(1)] == [[], [], [], [3], []]
    values, counts = pooler.flush()
    assert counts.tolist() == [2]
    assert torch.equal(values, pool(x[3:], threshold=0.9).values)


def test_a_flush_ends_the_sequence():
    x, pooler = spell("AAAA", 16), AffinityPooler()
    pooler.step(x[:2])
    pooler.flush()
    assert pooler.step(x[2:])[1].tolist() == []
    assert pooler.flush()[1].tolist() == [2]


def test_after_a_flush_rows_may_be_of_another_kind():
    pooler = AffinityPooler()
    pooler.step(spell("A", 16))
    pooler.flush()
    pooler.step(spell("A", 8, torch.float16))
    assert pooler.flush()[0].dtype == torch.float16


def test_an_empty_chunk_changes_nothing():
    pooler, x = AffinityPooler(), spell("AA", 16)
    pooler.step(x[:1])
    values, counts = pooler.step(x[:0])
    assert (values.shape, counts.shape, counts.dtype) == ((0, 16), (0,), torch.int32)
    pooler.step(x[1:])
    assert pooler.flush()[1].tolist() == [2]


def test_a_refused_chunk_loses_nothing():
    pooler, x = AffinityPooler(), spell("AA", 16)
    pooler.step(x[:1])
    with pytest.raises(ValueError, match="chunk must be like the first one"):
        pooler.step(x[1:].half())
    pooler.step(x[1:])
    assert pooler.flush()[1].tolist() == [2]


def test_the_stream_keeps_no_view_of_what_it_was_fed():
    x, pooler = spell("AA", 16), AffinityPooler()
    expected = pool(x).values
    chunk = x[:1].clone()
    pooler.step(chunk)
    chunk.fill_(torch.nan)
    pooler.step(x[1:])
    assert torch.equal(pooler.flush()[0], expected)


def test_the_state_does_not_grow_with_the_stream():
    """The open group's sum and its latest `window` rows, not views into larger chunks."""
    pooler = AffinityPooler(window=2)
    for chunk in spell("A" * 96, 16).split(32):
        pooler.step(chunk)
    held = [v for part in (pooler._open, pooler._open._sum) for v in vars(part).values() if isinstance(v, torch.Tensor)]
    assert len(held) == 2
    assert sum(t.untyped_storage().nbytes() for t in held) <= 3 * 16 * 4


def test_a_stream_records_no_gradient():
    pooler = AffinityPooler()
    values, _ = pooler.step(spell("AB", 16).requires_grad_())
    assert not values.requires_grad
    assert not pooler.flush()[0].requires_grad


@given(modes=st.lists(st.sampled_from(["inference", "plain", "no_grad", "grad", "autocast"]), min_size=12, max_size=12))
def test_chunks_may_come_in_any_mode_and_mix_of_modes(modes):
    """A server's prefill is in inference mode, its warm-up may not be; some chunks require a gradient."""
    enter = {
        "inference": torch.inference_mode,
        "no_grad": torch.no_grad,
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    }
    x, pooler, parts = spell("AAABaAACCCBB", 16, noise=0.1), AffinityPooler(threshold=0.9), []
    offline = pool(x, threshold=0.9)
    for row, mode in zip(x.split(1), modes, strict=True):
        with enter.get(mode, nullcontext)():
            parts.append(pooler.step(row.clone().requires_grad_(mode == "grad")))
    parts.append(pooler.flush())
    assert same_bits([torch.cat(part) for part in zip(*parts, strict=True)], (offline.values, offline.counts))
    assert not any(t.is_inference() or t.requires_grad for part in parts for t in part)


def test_the_default_dtype_of_torch_changes_nothing():
    x = spell("A" * 7, 64, noise=0.1)
    offline = pool(x, threshold=0.0)
    torch.set_default_dtype(torch.float64)
    try:
        streamed = stream(AffinityPooler(threshold=0.0), list(x.split(2)))
    finally:
        torch.set_default_dtype(torch.float32)
    assert same_bits(streamed, (offline.values, offline.counts))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pooler: pickle.loads(pickle.dumps(pooler))])
def test_a_copy_made_in_mid_stream_goes_on_alone(copied):
    x = spell("AAAAABB", 16, noise=0.1)
    offline = pool(x, threshold=0.5)
    pooler = AffinityPooler(threshold=0.5)
    pooler.step(x[:2])
    twin = copied(pooler)
    pooler.step(spell("B", 16))
    pooler.step(spell("C", 16))
    assert same_bits(stream(twin, [x[2:]]), (offline.values, offline.counts))


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("after", range(8))
def test_an_interrupted_step_changes_nothing(interruption, after, monkeypatch):
    """After so many calls of the op or additions to the sum: the same chunk can be fed again."""
    x = spell("AAAAAABBCC", 16, noise=0.1)
    offline = pool(x, threshold=0.5)
    pooler = AffinityPooler(threshold=0.5)
    pooler.step(x[:2])
    calls = 0

    def interrupted(function):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls > after:
                raise interruption
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(streaming, "pool", interrupted(pool))
        patched.setattr(streaming.RunningSum, "add", interrupted(streaming.RunningSum.add))
        with pytest.raises(interruption):
            pooler.step(x[2:])
    assert same_bits(stream(pooler, [x[2:]]), (offline.values, offline.counts))


def test_results_have_names_and_are_tuples_of_two():
    pooler = AffinityPooler(threshold=0.9)
    closed = pooler.step(spell("AABB", 16))
    assert isinstance(closed, Closed)
    assert closed == (closed.values, closed.counts)
    assert isinstance(pooler.flush(), Closed)


@pytest.mark.parametrize(
    "transform", [torch.func.grad, torch.func.vmap, lambda f: lambda x: torch.func.jvp(f, (x,), (x,))]
)
def test_a_chunk_whose_derivative_would_be_lost_is_refused(transform):
    pooler, x = AffinityPooler(), spell("AABB", 16)
    pooler.step(x[:1])
    with pytest.raises(
        NotImplementedError, match=r"chunk must not be under torch.func or carry .* tangent; .* to pool"
    ):
        transform(lambda chunk: pooler.step(chunk if chunk.dim() == 2 else chunk[None]).values.sum())(x)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode tangent"):
        pooler.step(torch.autograd.forward_ad.make_dual(x, x))
    assert pooler.flush().counts.tolist() == [1]
