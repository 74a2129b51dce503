"""Sites that draw their threshold or share from a range in training: seeded, recorded, checked, and saved."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from random_encoder_decoders import logits as heard
from random_encoder_decoders import random_model, speech
from random_speech import SPEECH, batch, speech_model

from affinity_pool.models import Site, patch
from affinity_pool.models.settings import sites_json

RANGED = [Site(0, (0.4, 0.9), 1), Site(2, keep=(0.2, 0.8))]


@pytest.fixture
def model() -> Any:
    with torch.inference_mode(False):
        return copy.deepcopy(speech_model())


def drawn(model: Any, calls: int, **options: Any) -> list[tuple[float, float]]:
    figures = []
    with patch(model, RANGED, **options) as handle:
        for _ in range(calls):
            model(**batch(SPEECH))
            first, second = handle.stats.sites
            assert (first.keep, second.threshold) == (None, None)
            figures.append((first.threshold, second.keep))
    return figures


def test_training_draws_anew_for_each_prefill_within_the_range(model):
    figures = drawn(model.train(), 40)
    thresholds, shares = zip(*figures, strict=True)
    assert len(set(figures)) == 40
    assert 0.4 <= min(thresholds) < 0.5 < 0.8 < max(thresholds) <= 0.9
    assert 0.2 <= min(shares) < 0.35 < 0.65 < max(shares) <= 0.8


def test_a_draw_is_within_a_range_of_any_width_and_on_the_host(model):
    with torch.device("meta"):
        figures = [Site(0, (-1.7e308, 1.7e308)).drawn(training=True).threshold for _ in range(50)]
        figures += [Site(0, (0.3, 0.3)).drawn(training=True).threshold]
    assert all(-1.7e308 <= drawn <= 1.7e308 for drawn in figures)
    assert figures[-1] == 0.3


def test_ends_may_be_of_numpy():
    site = Site(0, keep=(np.float32(0.5), np.int64(1)))
    assert site.keep == (0.5, 1.0)
    assert sites_json([site]) == [{"layer": 0, "keep": (0.5, 1.0)}]


def test_a_seed_draws_the_same_again(model):
    torch.manual_seed(7)
    first = drawn(model.train(), 3)
    torch.manual_seed(7)
    assert drawn(model, 3) == first


def test_evaluation_takes_the_lower_end_and_draws_nothing(model):
    state = torch.get_rng_state()
    assert drawn(model, 3) == [(0.4, 0.2)] * 3
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_pooled_is_what_was_drawn(model):
    inputs = batch(SPEECH)
    model.train()
    with patch(model, RANGED) as handle:
        out = model(**inputs).logits
        first, second = handle.stats.sites
    with patch(model, [Site(0, first.threshold, 1), Site(2, keep=second.keep)]) as fixed:
        assert torch.equal(model(**inputs).logits, out)
        assert fixed.stats.sites[0].tokens_after == first.tokens_after


def test_a_site_by_itself_is_one_of_evaluation_mode():
    x = torch.randn(1, 12, 8)
    ranged = Site(0, keep=(0.5, 0.9)).reduce(x, None, None)
    assert torch.equal(ranged.values, Site(0, keep=0.5).reduce(x, None, None).values)


def test_pooled_memory_draws_too():
    with torch.inference_mode(False):
        model = copy.deepcopy(random_model())
    with patch(model, [Site("memory", keep=(0.2, 0.9))]) as handle:
        heard(model, speech())
        assert handle.stats.sites[0].keep == 0.2
        model.train()
        shares = set()
        for _ in range(5):
            heard(model, speech())
            shares.add(handle.stats.sites[0].keep)
        assert len(shares) == 5


def test_what_a_reduction_of_ones_own_went_by_is_not_told(model):
    def nothing(x: torch.Tensor, lengths: torch.Tensor | None, audio: torch.Tensor) -> Any:
        return Site(0, 1.5, 1).reduce(x, lengths, audio)

    with patch(model, [Site(0, reduction=nothing)]) as handle:
        model(**batch(SPEECH))
        assert (handle.stats.sites[0].threshold, handle.stats.sites[0].keep) == (None, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": (0.9, 0.8)}, r"threshold must be a range from low to high, both finite, got \(0.9, 0.8\)"),
        ({"threshold": (0.5, float("inf"))}, "threshold must be a range from low to high, both finite"),
        ({"threshold": (0.9, float("nan"))}, "threshold must be a range from low to high"),
        ({"threshold": (0.9,)}, r"threshold must be a number or a range of two, \(low, high\), got \(0.9,\)"),
        ({"threshold": (0.8, 0.9, 1.0)}, "threshold must be a number or a range of two"),
        ({"threshold": (0.8, "1")}, "threshold must be a number or a range of two"),
        ({"threshold": (True, 1.0)}, "threshold must be a number or a range of two"),
        ({"keep": (0.0, 0.5)}, "keep must"),
        ({"keep": (0.5, 1.5)}, "keep must"),
        ({"keep": (0.6, 0.5)}, "keep must be a range from low to high"),
        ({"keep": (0.5, 0.6), "threshold": 0.9}, "two rules for one site"),
    ],
)
def test_ranges_that_are_none(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Site(0, **options)


def test_a_saved_patch_is_read_back(model, tmp_path):
    sites = [Site(0, (0.85, 1.0), 1), Site(2, keep=(0.2, 1)), Site(3, 0.7, 3)]
    with patch(model, sites, positions="compact", attention="proportional") as handle:
        file = handle.save(tmp_path / "checkpoint")
    assert json.loads(file.read_text())["sites"][0] == {"layer": 0, "threshold": [0.85, 1.0], "window": 1}
    with patch(model, tmp_path / "checkpoint") as again:
        assert again.sites == handle.sites
        assert (again.positions, again.attention) == ("compact", "proportional")


def test_a_reduction_of_ones_own_cannot_be_saved(model, tmp_path):
    with patch(model, [Site(1, reduction=Site(1).reduce)]) as handle, pytest.raises(ValueError, match="layer 1"):
        handle.save(tmp_path)
    assert not list(tmp_path.iterdir())
