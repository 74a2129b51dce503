"""A recording played faster: its pitch stays, its events keep their places, its length is exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from affinity_pool.study.data.audio import Audio
from affinity_pool.study.reductions import speed_up

RATE = 16000
FACTORS = pytest.mark.parametrize("factor", [1.05, 1.5, 2.0, 4.0])


def tone(hertz: float, seconds: float = 2.0, rate: int = RATE) -> Audio:
    time = np.arange(round(seconds * rate)) / rate
    return Audio((0.3 * np.sin(2 * np.pi * hertz * time)).astype(np.float32), rate)


def pitch(audio: Audio) -> float:
    """Hertz of the strongest component, to a tenth."""
    samples = audio.samples * np.hanning(len(audio.samples))
    bins = 10 * audio.rate
    return float(np.abs(np.fft.rfft(samples, bins)).argmax()) * audio.rate / bins


def level(samples: np.ndarray) -> float:
    return float(np.sqrt((samples.astype(np.float64) ** 2).mean()))


@FACTORS
@pytest.mark.parametrize("hertz", [80.0, 220.0, 1000.0, 3300.0])
@pytest.mark.parametrize("rate", [8000, RATE])
def test_a_tone_keeps_its_pitch_and_its_level(hertz: float, factor: float, rate: int) -> None:
    before = tone(hertz, rate=rate)
    after = speed_up(before, factor)
    assert pitch(after) == pytest.approx(hertz, abs=0.5)
    assert level(after.samples) == pytest.approx(level(before.samples), rel=0.02)


@FACTORS
def test_bursts_come_where_the_speed_puts_them(factor: float) -> None:
    starts = [0.5, 1.4, 2.3]
    samples = np.zeros(3 * RATE, dtype=np.float32)
    for start in starts:
        samples[round(start * RATE) : round((start + 0.3) * RATE)] = tone(440, 0.3).samples
    loud = np.abs(speed_up(Audio(samples, RATE), factor).samples) > 0.1
    for start in starts:
        middle = (start + 0.15) / factor
        near = loud[round((middle - 0.18 / factor - 0.03) * RATE) : round((middle + 0.18 / factor + 0.03) * RATE)]
        where = near.nonzero()[0]
        assert (where[0] + where[-1]) / 2 == pytest.approx(len(near) / 2, abs=0.026 * RATE)  # a hop and the search


@given(st.integers(1, 3000), st.floats(1, 8), st.sampled_from([100, 8000, RATE, 44100]))
def test_n_samples_become_n_over_factor_rounded_however_short(n: int, factor: float, rate: int) -> None:
    samples = np.random.default_rng(n).uniform(-1, 1, n).astype(np.float32)
    if round(n / factor) == 0:
        return
    faster = speed_up(Audio(samples, rate), factor)
    assert faster.samples.shape == (round(n / factor),)
    assert faster.samples.dtype == np.float32
    assert faster.rate == rate
    assert np.abs(faster.samples).max() <= 1.0 + 1e-6


@FACTORS
def test_silence_stays_silence(factor: float) -> None:
    assert not speed_up(Audio(np.zeros(RATE, dtype=np.float32), RATE), factor).samples.any()


def test_a_click_after_silence_comes_exactly_where_the_speed_puts_it() -> None:
    samples = np.zeros(RATE, dtype=np.float32)
    samples[10240] = 1.0  # twice 20 hops of 256 samples: the middle of a piece
    assert speed_up(Audio(samples, RATE), 2.0).samples.nonzero()[0].tolist() == [5120]


def test_the_same_recording_gives_the_same_samples_and_is_not_changed() -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    before = samples.copy()
    one, other = (speed_up(Audio(samples, RATE), 1.7).samples for _ in range(2))
    assert np.array_equal(one, other)
    assert np.array_equal(samples, before)


def test_at_its_own_speed_a_recording_is_what_it_was() -> None:
    audio = tone(300, 0.5)
    assert np.array_equal(speed_up(audio, 1.0).samples, audio.samples)


@pytest.mark.parametrize("factor", [0.5, 0.0, -1.0, float("nan"), float("inf")])
def test_slower_than_it_was_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match=r"factor must be 1 or more \(times as fast\), got"):
        speed_up(tone(300, 0.1), factor)


def test_a_factor_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"factor 1000\.0 leaves nothing of 160 samples"):
        speed_up(tone(300, 0.01), 1000.0)
