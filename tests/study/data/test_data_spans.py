"""Seconds to tokens: what a token of Qwen2-Audio hears, which tokens a word has, and units that leave nothing out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2AudioEncoder, Qwen2AudioEncoderConfig, WhisperFeatureExtractor

from affinity_pool.study.data import Audio, Word, open_data
from affinity_pool.study.data.spans import token_centre, token_spans, units
from affinity_pool.study.errors import InputError
from affinity_pool.study.groups import Span

RATE = 16000
T = 0.04  # seconds a token of Qwen2-Audio


@pytest.fixture(scope="module")
def front_end() -> Qwen2AudioEncoder:
    torch.manual_seed(0)
    config = Qwen2AudioEncoderConfig(
        num_mel_bins=16, d_model=8, encoder_layers=1, encoder_attention_heads=1, encoder_ffn_dim=8
    )
    return Qwen2AudioEncoder(config).eval()


def mel(samples: np.ndarray) -> torch.Tensor:
    """``[1, bins, frames]`` of two seconds."""
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    return torch.as_tensor(extractor(samples, sampling_rate=RATE, return_tensors="np").input_features)


@torch.no_grad()
def tokens_of(encoder: Qwen2AudioEncoder, samples: np.ndarray) -> torch.Tensor:
    """``[tokens, D]``: the encoder without its attention layers."""
    hidden = torch.nn.functional.gelu(encoder.conv2(torch.nn.functional.gelu(encoder.conv1(mel(samples)))))
    return encoder.avg_pooler(hidden)[0].T


def test_a_token_hears_what_the_arithmetic_says(front_end: Qwen2AudioEncoder) -> None:
    """One sample at a time is changed; the tokens that change are those within 85 ms, around 0.04 j + 0.01 s."""
    # the loudest sample of a spectrogram sets the floor of all of it: one that is not touched
    samples = 0.01 * np.random.default_rng(0).standard_normal(2 * RATE).astype(np.float32)
    samples[-RATE // 8 :] *= 20
    before = tokens_of(front_end, samples)
    assert len(before) == 50
    for changed in (4000, 8003, 8319, 8320, 8321, 8639, 9080, 12345, 15720, 15721):
        other = samples.copy()
        other[changed] += 0.05
        moved = (tokens_of(front_end, other) - before).abs().amax(1) > 0
        second = changed / RATE
        hearing = [j for j in range(50) if T * j - 0.0325 < second < T * j + 0.0525]
        assert moved.nonzero().flatten().tolist() == hearing
        assert all(abs(token_centre(j, T) - second) < 0.0425 for j in hearing)
    assert token_centre(0, T) == pytest.approx(0.01)


@pytest.mark.parametrize("offset", [0.0, 0.013, 0.02, 0.031])
def test_known_gaps_are_found_at_the_tokens_that_hear_them(front_end: Qwen2AudioEncoder, offset: float) -> None:
    """Noise with silences, cut wherever: tokens of a word hear mostly noise, tokens of a gap mostly silence."""
    words = [Word("a", 0.2 + offset, 0.6 + offset), Word("b", 0.8 + offset, 1.3), Word("c", 1.5, 1.8 + offset)]
    noise = np.random.default_rng(1).standard_normal(2 * RATE).astype(np.float32)
    second = np.arange(2 * RATE) / RATE
    loud = np.any([(word.start <= second) & (second < word.end) for word in words], axis=0)
    frames = mel(np.where(loud, 0.2, 1e-4) * noise)[0].mean(0)  # a frame is around its index times 10 ms
    # what the convolutions and the pooling put into token j, each with equal weights
    heard = torch.nn.functional.pad(frames, (2, 2)).unfold(0, 7, 4).mean(1)
    is_loud = heard > (frames.max() + frames.min()) / 2
    in_word = torch.zeros(50, dtype=torch.bool)
    for span in token_spans(words, T, 50):
        in_word[span.start : span.end] = True
    edges = [token for token in range(50) if any(abs(token_centre(token, T) - t) < 0.015 for w in words for t in w[1:])]
    assert [token for token in range(50) if is_loud[token] != in_word[token] and token not in edges] == []


def test_the_bundled_recordings_are_loud_where_their_words_are() -> None:
    """Their word times are exact: of their audio tokens' energy nearly all lies in the tokens of words."""
    for utterance in open_data(None):
        if not utterance.id.startswith("allison"):
            continue
        audio = utterance.load(RATE)
        energy = energy_of_tokens(audio)
        loud = set(np.flatnonzero(energy > energy.max() - 25).tolist())  # dB
        spans = token_spans(utterance.words, T, len(energy))
        assert len(spans) == len(utterance.words)
        inside = {token for span in spans for token in range(*span)}
        assert loud <= inside, utterance.id


def energy_of_tokens(audio: Audio) -> np.ndarray:
    """``[tokens]`` dB of the 40 ms around each token's centre."""
    tokens = int(audio.seconds / T)
    power = np.pad(audio.samples**2, RATE // 25)
    middle = [round(token_centre(token, T) * RATE) + RATE // 25 for token in range(tokens)]
    return 10 * np.log10([power[at - RATE // 50 : at + RATE // 50].mean() + 1e-10 for at in middle])


def test_a_word_has_the_tokens_whose_centres_it_covers() -> None:
    """Centres at 0.01, 0.05, 0.09, ...: a start is of the word, an end is not."""
    assert token_spans([Word("a", 0.05, 0.13)], T, 10) == [Span(1, 3)]
    assert token_spans([Word("a", 0.051, 0.131)], T, 10) == [Span(2, 4)]
    assert token_spans([Word("a", 0.0, 0.05), Word("b", 0.05, 9)], T, 10) == [Span(0, 1), Span(1, 10)]


def test_a_later_word_takes_the_tokens_that_two_words_cover() -> None:
    assert token_spans([Word("a", 0, 0.3), Word("b", 0.17, 0.41)], T, 10) == [Span(0, 4), Span(4, 10)]
    assert token_spans([Word("a", 0, 0.4), Word("b", 0.09, 0.17)], T, 10) == [Span(0, 2), Span(2, 4)]


def test_a_word_between_two_centres_or_behind_the_end_has_no_tokens() -> None:
    assert token_spans([Word("a", 0.06, 0.08), Word("b", 0.1, 0.2), Word("c", 0.5, 0.6)], T, 10) == [Span(3, 5)]


def test_units_are_the_words_and_the_silences_around_them() -> None:
    words = [Word("a", 0.09, 0.17), Word("b", 0.17, 0.25), Word("c", 0.29, 0.37)]
    assert units(words, T, 12) == [Span(0, 2), Span(2, 4), Span(4, 6), Span(6, 7), Span(7, 9), Span(9, 12)]
    assert units([], T, 12) == [Span(0, 12)]
    assert units(words, T, 0) == []


def test_units_of_seconds_are_equally_long_but_for_the_last() -> None:
    assert units([], T, 25, "0.4") == [Span(0, 10), Span(10, 20), Span(20, 25)]
    assert units([], T, 3, "0.00001") == [Span(0, 1), Span(1, 2), Span(2, 3)]
    assert [end - start for start, end in units([], 0.08, 1000, "0.8")] == [10] * 100


@pytest.mark.parametrize("kind", ["syllables", "0", "-1", "nan", "inf", ""])
def test_other_units_are_refused(kind: str) -> None:
    with pytest.raises(InputError, match=r"units must be 'words' or a number of seconds"):
        units([], T, 10, kind)


moments = st.floats(0, 20, allow_nan=False) | st.integers(0, 500).map(lambda hop: hop / 100)
spoken = st.lists(st.tuples(moments, moments).filter(lambda edges: edges[0] != edges[1]), max_size=12).map(
    lambda edges: [Word("w", *sorted(pair)) for pair in sorted(edges, key=min)]
)


@given(spoken, st.integers(0, 400), st.sampled_from([0.02, 0.04, 0.08, 0.0625]), st.sampled_from(["words", "0.4", "7"]))
def test_units_are_a_partition_of_the_tokens(words: Sequence[Word], tokens: int, seconds: float, kind: str) -> None:
    found = units(words, seconds, tokens, kind)
    assert [token for start, end in found for token in range(start, end)] == list(range(tokens))
    assert all(start < end for start, end in found)


@given(spoken, st.integers(0, 400))
def test_a_token_is_the_latest_words_that_covers_its_centre(words: Sequence[Word], tokens: int) -> None:
    """Of words in the order of their starts, and but for those that a later word has cut short."""
    spans = token_spans(words, T, tokens)
    assert all(before.end <= after.start for before, after in pairwise(spans))
    assert set(spans) <= set(units(words, T, tokens))
    owned = {token for span in spans for token in range(*span)}
    for token in range(tokens):
        centre = token_centre(token, T)
        if any(abs(centre - edge) < 1e-5 for word in words for edge in word[1:]):
            continue
        started = [word for word in words if word.start <= centre]
        assert (token in owned) == bool(started and centre < started[-1].end)


def test_a_manifest_beside_its_recordings_is_enough_for_units(corpus: Path) -> None:
    utterance = open_data(corpus)[0]
    tokens = int(utterance.load(RATE).seconds / T)
    assert units(utterance.words, T, tokens) == [Span(0, 5), Span(5, 13), Span(13, 20)]
