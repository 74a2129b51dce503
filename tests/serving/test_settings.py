"""What may be written in a model's config and in a request."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from affinity_pool.serving.vllm.settings import KEY, Settings, of_config, settled, share, without_share


def config(**attributes: Any) -> SimpleNamespace:
    return SimpleNamespace(**attributes)


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (0.8, Settings(0.8)),
        (1, Settings(1.0)),
        ({"default": 0.8}, Settings(0.8)),
        ({"min": 0.4, "default": 0.8}, Settings(0.8, 0.4)),
        ({"min": 0.4, "max": 0.6}, Settings(0.6, 0.4, 0.6)),
        ({"min": 0.5, "default": 0.5, "max": 0.5}, Settings(0.5, 0.5, 0.5)),
        ({"min": 0.4}, Settings(1.0, 0.4)),
    ],
)
def test_a_config_says_a_share_or_its_bounds(keep, expected):
    assert of_config(config(affinity_pool={"keep": keep})) == expected


def test_a_config_may_say_nothing():
    assert of_config(config()) is None
    assert of_config(config(affinity_pool=None)) is None


@pytest.mark.parametrize(
    "written",
    [
        0.5,
        "0.5",
        [],
        {},
        {"kept": 0.5},
        {"keep": 0.5, "window": 1},
        *({"keep": keep} for keep in (0, -0.1, 1.01, 2, True, False, None, "0.5", [0.5], float("nan"), float("inf"))),
        *({"keep": keep} for keep in ({}, {"least": 0.4}, {"min": 0.4, "window": 1}, {"default": 0}, {"min": 0})),
        *(
            {"keep": keep}
            for keep in ({"min": 0.8, "default": 0.4}, {"max": 0.5, "default": 0.8}, {"min": 0.6, "max": 0.5})
        ),
        {"keep": {"min": None, "default": 0.5}},
    ],
    ids=repr,
)
def test_a_config_that_says_something_else_is_refused_in_words(written):
    with pytest.raises(ValueError, match=r"^affinity_pool: .*got "):
        of_config(config(affinity_pool=written))


def test_a_request_chooses_and_a_silent_one_gets_the_default():
    settings = Settings(0.8, 0.4, 0.9)
    assert settings.of_request({}) == 0.8
    assert settings.of_request({KEY: None, "other": 1}) == 0.8
    assert settings.of_request({KEY: {"keep": 0.4}}) == 0.4
    assert settings.of_request({KEY: {"keep": 0.9}}) == 0.9
    assert Settings().of_request({KEY: {"keep": 1}}) == 1.0
    assert Settings(0.8).of_request({KEY: {"keep": 1e-9}}) == 1e-9


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({KEY: {"keep": 0.3}}, "keep must be in 0.4..0.9 on this server, got 0.3"),
        ({KEY: {"keep": 1.0}}, "keep must be in 0.4..0.9 on this server, got 1"),
        ({KEY: {"keep": {"min": 0.4}}}, "keep is the share of audio tokens"),
        ({KEY: {"keep": "half"}}, "above 0 and up to 1, got 'half'"),
        ({KEY: 0.5}, 'expected {"keep": share} in a request\'s mm_processor_kwargs, got 0.5'),
        ({KEY: {"keep": 0.5, "window": 3}}, "expected"),
        ({"audio_kwargs": {KEY: {"keep": 0.5}}}, "it was found in audio_kwargs"),
        ({"audio_kwargs": 3}, "audio_kwargs of mm_processor_kwargs must be a mapping, got 3"),
    ],
)
def test_a_request_that_cannot_be_is_refused_in_words(request_, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        Settings(0.8, 0.4, 0.9).of_request(request_)


def test_numbers_of_numpy_are_numbers():
    for kind in (np.float32, np.float64):
        keep = Settings().of_request({KEY: {"keep": kind(0.5)}})
        assert type(keep) is float
        assert keep == 0.5


def test_what_is_refused_is_not_repeated_at_length():
    for wrong in (10**400, "x" * 10_000, list(range(10_000))):
        with pytest.raises(ValueError, match="got ") as error:
            Settings().of_request({KEY: {"keep": wrong}})
        assert len(str(error.value)) < 200


@pytest.mark.parametrize("request_", [{}, {"rate": 16}, {"audio_kwargs": {"pad": 1}, "rate": 16}], ids=str)
def test_the_share_lies_where_vllm_hashes_it_for_audio_alone(request_):
    asked = {**request_, KEY: {"keep": 0.9}}
    kwargs = settled(asked, 0.5)
    assert share(kwargs) == 0.5
    assert KEY not in kwargs
    assert without_share(kwargs) == without_share(asked) == request_
    assert list(settled(asked, 1.0).items()) == list(request_.items())
    assert share(settled(asked, 1.0)) is None
    assert "affinity_pool" not in str(request_)  # nor was the caller's own changed
