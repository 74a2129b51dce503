"""Placeholders taken out, rows pooled to as many, and how much is encoded at once."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import affinity_pool
from affinity_pool.serving.vllm.batches import EncoderBatches
from affinity_pool.serving.vllm.promise import Promise, cut, keep_promise

AUDIO = 7

tokens = st.lists(st.sampled_from((AUDIO, 1, 2)), min_size=1, max_size=40)
shares = st.floats(min_value=0.001, max_value=1.0)


@given(tokens, shares)
def test_the_last_placeholders_go_and_text_stays(full, keep):
    mask = torch.tensor(full) == AUDIO
    left = cut(full, mask, keep)
    rows = affinity_pool.rows_left(full.count(AUDIO), keep)
    assert left.promise == Promise(rows, full.count(AUDIO))
    assert left.tokens.count(AUDIO) == rows == int(left.is_embed.sum())
    assert [token for token in left.tokens if token != AUDIO] == [token for token in full if token != AUDIO]
    seen, expected = 0, []
    for token in full:
        seen += token == AUDIO
        if token != AUDIO or seen <= rows:
            expected.append(token)
    assert left.tokens == expected
    assert left.is_embed.tolist() == [token == AUDIO for token in left.tokens]


@given(st.integers(1, 60), shares)
def test_without_a_mask_all_are_placeholders(encoded, keep):
    left = cut([AUDIO] * encoded, None, keep)
    assert left.tokens == [AUDIO] * affinity_pool.rows_left(encoded, keep)
    assert bool(left.is_embed.all())


@given(st.integers(1, 60), shares, st.sampled_from((torch.float32, torch.bfloat16, torch.float16)))
def test_a_clip_is_pooled_to_its_promise(encoded, keep, dtype):
    torch.manual_seed(encoded)
    clip = torch.randn(encoded, 8).to(dtype)
    rows = affinity_pool.rows_left(encoded, keep)
    pooled = keep_promise(clip, Promise(rows, encoded))
    assert torch.equal(pooled, affinity_pool.pool_to(clip, keep).values)
    assert pooled.untyped_storage().nbytes() == rows * 8 * dtype.itemsize  # what vLLM caches is no larger


@pytest.mark.parametrize("made", [5, 9, 11])
def test_a_promise_is_kept_where_the_encoder_makes_another_number_than_the_formula_says(made):
    clip = torch.randn(made, 4, generator=torch.Generator().manual_seed(made))
    assert torch.equal(keep_promise(clip, Promise(5, 10)), affinity_pool.pool_to(clip, 5).values)


def test_a_promise_that_cannot_be_kept_is_told():
    with pytest.raises(
        RuntimeError, match="made 4 rows of a clip for which vLLM's formula says 10, and 5 are promised"
    ):
        keep_promise(torch.ones(4, 4), Promise(5, 10))


@given(st.lists(st.integers(1, 900), max_size=60), st.integers(1, 2000))
def test_no_batch_holds_more_than_the_budget_but_a_clip_that_is_longer_alone(clips, budget):
    batches = EncoderBatches(budget)
    numbers = [batches.number(clip) for clip in clips]
    assert numbers == sorted(numbers)
    sums, sizes = Counter(), Counter(numbers)
    for number, clip in zip(numbers, clips, strict=True):
        sums[number] += clip
    assert all(total <= budget or sizes[number] == 1 for number, total in sums.items())
    for earlier, later in zip(sorted(sums), sorted(sums)[1:], strict=False):  # and none is shut before it is full
        first = next(clip for number, clip in zip(numbers, clips, strict=True) if number == later)
        assert sums[earlier] + first > budget


def test_threads_share_the_budget():
    batches = EncoderBatches(10)
    with ThreadPoolExecutor(8) as pool:
        numbers = Counter(pool.map(batches.number, [1] * 4000))
    assert set(numbers.values()) == {10}


def test_front_ends_do_not_number_alike():
    assert len({EncoderBatches(10).number(1) for _ in range(50)}) == 50
