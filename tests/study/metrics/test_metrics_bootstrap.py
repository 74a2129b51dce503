"""Bootstrap intervals: as wide as they should be, and of nothing but the utterances."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from affinity_pool.study.errors import InputError
from affinity_pool.study.metrics import for_task, interval, paired

WER = for_task("transcribe")[0]
EXACT = for_task("answer")[0]
BLEU = for_task("translate")[0]

ROWS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 9)), min_size=2, max_size=12)


def _systems(rows: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray]:
    table = np.array(rows, float)
    return table[:, [0, 2]], table[:, [1, 2]]


def _simulated(rng: np.random.Generator, utterances: int) -> tuple[np.ndarray, np.ndarray]:
    """Two systems that find the same utterances hard: error rates 0.15 and 0.20, with 5 to 24 words an utterance."""
    words = rng.integers(5, 25, utterances)
    hard = rng.beta(2, 8, utterances)
    return tuple(np.stack([rng.binomial(words, hard * scale), words], 1).astype(float) for scale in (0.75, 1.0))


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(7)
    runs = [_simulated(rng, 100) for _ in range(400)]
    single = [interval(a, WER, resamples=500).holds(0.15) for a, _ in runs]
    both = [paired(a, b, WER, resamples=500).holds(0.05) for a, b in runs]
    assert 0.91 < np.mean(single) < 0.98
    assert 0.91 < np.mean(both) < 0.98


def test_pairing_is_narrower_than_two_intervals() -> None:
    a, b = _simulated(np.random.default_rng(0), 300)
    difference = paired(a, b, WER)
    alone = [interval(system, WER) for system in (a, b)]
    assert difference.value == pytest.approx(alone[1].value - alone[0].value, abs=1e-12)
    assert difference.high - difference.low < sum(part.high - part.low for part in alone) / 2


def test_a_higher_confidence_is_wider() -> None:
    a, _ = _simulated(np.random.default_rng(0), 50)
    wide, narrow = (interval(a, WER, confidence=confidence) for confidence in (0.99, 0.8))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_agrees_with_drawing_utterances_one_by_one() -> None:
    a, _ = _simulated(np.random.default_rng(1), 60)
    drawn = np.random.default_rng(2).integers(0, 60, (20_000, 60))
    low, high = np.quantile(WER.value(a[drawn].sum(1)), [0.025, 0.975])
    found = interval(a, WER, resamples=20_000)
    assert (found.low, found.high) == pytest.approx((low, high), abs=2e-3)


@given(ROWS)
def test_equal_systems_differ_by_nothing(rows: list[tuple[int, int, int]]) -> None:
    a, _ = _systems(rows)
    found = paired(a, a, WER, resamples=50)
    assert (found.value, found.low, found.high) == (0, 0, 0)


@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_utterances_is_nothing(rows: list[tuple[int, int, int]], random) -> None:
    shuffled = rows[:]
    random.shuffle(shuffled)
    assert paired(*_systems(rows), WER, resamples=50) == paired(*_systems(shuffled), WER, resamples=50)


def test_a_seed_decides_every_draw() -> None:
    a, b = _simulated(np.random.default_rng(0), 50)
    assert paired(a, b, WER, seed=3) == paired(a, b, WER, seed=3) != paired(a, b, WER, seed=4)


def test_scores_that_are_no_shares_have_intervals_too() -> None:
    pairs = [("the cat sat on the mat today", "the cat sat on the mat"), ("he is at home with his dog", "he is home")]
    counts = np.stack([BLEU.counts(*pair) for pair in pairs * 256])
    began = time.perf_counter()
    found = interval(counts, BLEU)
    assert time.perf_counter() - began < 2  # about 0.1 s
    assert found.low < found.value < found.high


def test_many_utterances_take_little_time() -> None:
    a, b = _simulated(np.random.default_rng(0), 2000)
    began = time.perf_counter()
    paired(a, b, WER)
    assert time.perf_counter() - began < 2  # about 0.1 s


def test_utterances_that_could_not_be_scored_are_left_out_of_both() -> None:
    a = np.array([[1, 1], [0, 1], [np.nan, np.nan], [1, 1]])
    b = np.array([[0, 1], [1, 1], [1, 1], [np.nan, np.nan]])
    found = paired(a, b, EXACT)
    assert (found.value, found.utterances) == (0, 2)
    assert interval(a, EXACT).utterances == 3


def test_one_utterance_has_a_value_and_no_bounds() -> None:
    found = interval(np.array([[1.0, 4.0]]), WER)
    assert (found.value, found.low, found.high, found.utterances) == (0.25, None, None, 1)
    assert found.holds(0.9)


@pytest.mark.parametrize("counts", [np.empty((0, 2)), np.full((3, 2), np.nan)])
def test_no_utterance_is_refused(counts: np.ndarray) -> None:
    with pytest.raises(InputError, match=f"exact answers needs at least one recording.*none of {len(counts)}"):
        interval(counts, EXACT)


def test_systems_must_have_answered_the_same_utterances() -> None:
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(3, 2\)"):
        paired(np.ones((2, 2)), np.ones((3, 2)), WER)
