"""Sites that keep a share: how many tokens they leave is known before they run, and nothing waits for the device."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from kimi_like import conversation, kimi
from random_speech import AUDIO, DEEP, DEEP_KEPT, DUAL, INPUT, INPUT_KEPT, KEPT, SITES, batch, embedded, prompt
from torch import Tensor
from torch.utils._pytree import tree_map_only

from affinity_pool.models import Site, layers, patch
from affinity_pool.models.families import audio_tower, language_model
from affinity_pool.reference import rows_left


@pytest.fixture
def without_data(monkeypatch):
    """Sites pool a second time, where tensors have no contents that anyone could wait for; they are listed."""
    pool_at_site, seen = layers.pool_at_site, []

    def to_meta(of: Any) -> Any:
        return tree_map_only(Tensor, lambda tensor: tensor.to("meta"), of)

    def twice(calls: Any, call: Any, site: Site, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        given = {key: value for key, value in kwargs.items() if isinstance(value, (Tensor, tuple))}  # not the cache
        twin = copy.copy(call)
        vars(twin).update(to_meta(vars(call)), records=list(call.records), states=dict(call.states))
        expected = pool_at_site(calls, call, site, hidden, kwargs)
        found = pool_at_site(calls, twin, site, to_meta(hidden), to_meta(given))
        assert found.is_meta
        assert (found.shape, twin.tokens, twin.runs) == (expected.shape, call.tokens, call.runs)
        seen.append(site)
        return expected

    monkeypatch.setattr(layers, "pool_at_site", twice)
    return seen


@pytest.mark.parametrize("attention", ["plain", "proportional"])
@pytest.mark.parametrize("positions", ["keep", "compact"])
@pytest.mark.parametrize("sites", [[INPUT_KEPT], [DEEP_KEPT], KEPT], ids=["input", "deep", "both"])
def test_a_site_that_keeps_a_share_needs_no_contents(any_model, speech, sites, positions, attention, without_data):
    with patch(any_model, sites, positions=positions, attention=attention):
        any_model(**speech)
        any_model(**speech, use_cache=False)
    assert without_data == 2 * sites


@pytest.mark.parametrize("positions", ["keep", "compact"])
def test_nor_does_it_in_kimi_audio(positions, without_data):
    sites = [Site(0, keep=0.7), Site(3, keep=0.4)]
    with patch(kimi(), sites, positions=positions):
        kimi()(**conversation())
    assert without_data == sites
    with patch(kimi(), [Site(0, 0.7, 1)]), pytest.raises(NotImplementedError, match="meta"):
        kimi()(**conversation())


@pytest.mark.parametrize("site", [INPUT, DEEP])
def test_a_site_with_a_threshold_does_need_them(model, speech, site, without_data):
    with patch(model, [site]), pytest.raises(NotImplementedError, match="meta"):
        model(**speech)
    assert without_data == []


@pytest.fixture
def reads(monkeypatch, model):
    """Where the patch asks for a tensor's contents: the method, and ``encoder`` when that begins."""
    seen: list[str] = []

    def noted(name: str) -> Any:
        asked = getattr(Tensor, name)

        def ask(self: Tensor, *args: Any) -> Any:
            if sys._getframe(1).f_globals["__name__"].startswith("affinity_pool.models"):
                seen.append(name)
            return asked(self, *args)

        return ask

    for name in ("cpu", "numpy", "item", "tolist", "nonzero", "__bool__", "__int__", "__index__", "__float__"):
        monkeypatch.setattr(Tensor, name, noted(name))
    hook = audio_tower(model).register_forward_pre_hook(lambda *_: seen.append("encoder"))
    yield seen
    hook.remove()


@pytest.mark.parametrize("attention", ["plain", "proportional"])
@pytest.mark.parametrize("sites", [[INPUT_KEPT], [DEEP_KEPT], KEPT], ids=["input", "deep", "both"])
def test_all_there_is_to_read_is_read_once_and_before_the_encoder_runs(model, speech, sites, attention, reads):
    with patch(model, sites, attention=attention):
        cache = model(**speech).past_key_values
        assert reads[0] == "cpu"
        assert reads.count("cpu") == 1  # what is asked after that is asked of its result
        assert reads[-1] == "encoder"
        reads.clear()
        model(input_ids=torch.full((3, 1), 20), past_key_values=cache)
        assert reads == []


def test_thresholds_are_waited_for_at_their_sites_and_so_are_runs_behind_them(model, speech, reads):
    with patch(model, DUAL):
        model(**speech)
    assert reads[0] == "encoder"
    assert reads.count("tolist") == 2
    reads.clear()
    with patch(model, [INPUT, DEEP_KEPT]):
        layer = language_model(model).layers[1].register_forward_pre_hook(lambda *_: reads.append("layer 1"))
        model(**speech)
        layer.remove()
    assert reads[0] == "encoder"
    assert reads.count("tolist") == 2
    assert reads[-1] == "layer 1"


# What is promised is what is left.


def left_of(runs: list[int], sites: list[Site]) -> list[int]:
    for site in sites:
        runs = [rows_left(run, site.keep) for run in runs]
    return runs


def test_each_clip_is_left_its_share(model):
    rows = [prompt("ab", 30, "c", 7, "de", seed=1), prompt(21, seed=2), prompt("ab", 1, "c", 2, 3, seed=3)]
    with patch(model, KEPT) as handle:
        model(**batch(rows))
    runs = [[30, 7], [21], [1, 5]]  # clips side by side are one run
    first, second = handle.stats.sites
    assert first.audio_before == list(map(sum, runs))
    assert first.audio_after == [sum(left_of(row, KEPT[:1])) for row in runs]
    assert second.audio_after == [sum(left_of(row, KEPT)) for row in runs]


@pytest.mark.parametrize(
    "sites", [*SITES.values(), [Site(0, reduction=INPUT.reduce), DEEP_KEPT]], ids=[*SITES, "deep-kept-input-another"]
)
def test_the_tokens_told_are_those_there_are(model, speech, sites):
    at_the_end = batch([prompt("ab", 30, seed=1), prompt("abc", 12, "d", 9, seed=2)])
    for inputs in (speech, at_the_end, prompt("ab", 12, "c", 12, seed=4), prompt(30, seed=5)):
        with patch(model, sites) as handle:
            width = model(**inputs).logits.shape[1]
            for site in handle.stats.sites:
                assert site.tokens_after == (site.counts > 0).sum(1).tolist()
                assert site.tokens_before == site.counts.sum(1).tolist()
            assert width == max(site.tokens_after)


def test_audio_in_padding_is_in_no_run(model, speech):
    ready, audio = embedded(model, speech), speech["input_ids"] == AUDIO
    for sites in (KEPT, [INPUT, DEEP_KEPT]):
        with patch(model, sites) as handle:
            expected = model(**ready, audio_positions=audio).logits
            before = handle.stats.sites
            padded = model(**ready, audio_positions=audio | (speech["attention_mask"] == 0)).logits
            assert torch.equal(padded, expected)
            for site, other in zip(handle.stats.sites, before, strict=True):
                assert (site.audio_before, site.audio_after) == (other.audio_before, other.audio_after)
