"""Kimi-Audio's adapter, on a model that is called as its code is: both streams, each with what the patch promises."""

from __future__ import annotations

import pytest
import torch
from by_hand import pooled_at
from kimi_like import BRANCH, LAYERS, MIMO, conversation, decode, kimi

from affinity_pool.models import FAMILIES, Site, patch

EARLY, AT_BRANCH, LATE = Site(0, 0.7, 1), Site(BRANCH, 0.8, 1), Site(BRANCH + 1, 0.2, 3)
EARLY_KEPT, LATE_KEPT = Site(0, keep=0.7), Site(BRANCH + 1, keep=0.4)
SITES = {
    "early": [EARLY],
    "late": [LATE],
    "both": [EARLY, LATE],
    "three": [EARLY, AT_BRANCH, LATE],
    "both-kept": [EARLY_KEPT, LATE_KEPT],
    "late-kept": [EARLY, AT_BRANCH, LATE_KEPT],
}


def widths(cache) -> list[int]:
    return [keys.shape[2] for keys, _ in cache]


@pytest.mark.parametrize("rule", [{"threshold": 1.5}, {"keep": 1.0}], ids=["threshold", "keep"])
def test_sites_at_which_nothing_merges_leave_both_streams_bit_identical(rule):
    model, inputs = kimi(), conversation()
    logits, said = model(**inputs), decode(model, inputs)
    with patch(model, [Site(0, **rule), Site(LAYERS - 1, **rule)]) as handle:
        for stream, expected in zip(model(**inputs)[:2], logits[:2], strict=True):
            assert torch.equal(stream, expected)
        assert torch.equal(decode(model, inputs), said)
        assert handle.stats.kv_bytes_saved == 0


@pytest.mark.parametrize("positions", ["keep", "compact"])
@pytest.mark.parametrize("sites", SITES.values(), ids=SITES)
def test_cache_and_no_cache_give_the_same_two_streams(sites, positions):
    merged = set()
    for seed in range(3):
        inputs = conversation(24 - 5 * seed, seed)
        with patch(kimi(), sites, positions=positions) as handle:
            cached = decode(kimi(), inputs)
            merged |= {site.layer for site in handle.stats.sites if site.audio_kept < 1}
            assert torch.equal(cached, decode(kimi(), inputs, cached=False))
    assert merged == {site.layer for site in sites}


@pytest.mark.parametrize("positions", ["keep", "compact"])
@pytest.mark.parametrize("sites", [[EARLY, LATE], [EARLY_KEPT, LATE_KEPT]], ids=["thresholds", "shares"])
def test_the_pooled_streams_equal_a_forward_that_pools_with_the_reference(sites, positions):
    model, inputs = kimi(), conversation()
    caught = []
    hook = model.model.layers[0].register_forward_pre_hook(lambda layer, args: caught.append(args[0]))
    model(**inputs)
    hook.remove()
    hidden, audio = caught[0][0], inputs["is_continuous_mask"][0]
    phase = torch.arange(len(audio))

    def run(layer, hidden, phase):
        long = layer.self_attn.rotary_emb.register_forward_pre_hook(
            lambda table, args, kwargs: (args, {"seq_len": 100}), with_kwargs=True
        )
        out = layer(hidden[None], position_ids=phase[None])[0][0]
        long.remove()
        return out

    for index, layer in enumerate(model.model.layers):
        for site in sites:
            if site.layer == index:
                hidden, first = pooled_at(site, hidden, audio)
                audio, phase = audio[first], phase[first]
                phase = torch.arange(len(phase)) if positions == "compact" else phase
        hidden = run(layer, hidden, phase)
        if index == BRANCH:
            branch, branch_phase = hidden, phase
    for layer in model.model.mimo_layers:
        branch = run(layer, branch, branch_phase)
    with patch(model, sites, positions=positions):
        audio_logits, text_logits, _ = model(**inputs)
    assert audio_logits.shape[1] > text_logits.shape[1]
    torch.testing.assert_close(text_logits[0], model.lm_head(hidden), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(audio_logits[0], model.mimo_output(branch), rtol=1e-3, atol=1e-3)


def test_the_branch_takes_the_width_of_its_layer_and_stats_count_its_keys():
    model, inputs = kimi(), conversation()
    whole = sum(keys.nbytes + values.nbytes for keys, values in model(**inputs)[2])
    with patch(model, [EARLY, AT_BRANCH, LATE]) as handle:
        cache = model(**inputs)[2]
        early, branch, late = (site.tokens_after[0] for site in handle.stats.sites)
        assert late < branch < early < inputs["input_ids"].shape[1]
        assert widths(cache) == [early] * BRANCH + [branch] + [late] * (LAYERS - BRANCH - 1) + [branch] * MIMO
        assert handle.stats.kv_bytes == sum(keys.nbytes + values.nbytes for keys, values in cache)
        assert handle.stats.kv_bytes + handle.stats.kv_bytes_saved == whole


def test_outputs_by_name_are_pooled_too():
    model, inputs = kimi(), conversation()
    with patch(model, [EARLY]):
        assert widths(model(**inputs, return_dict=True).past_key_values) == widths(model(**inputs)[2])


def test_text_alone_and_removal_leave_the_model_as_it_is():
    model, inputs = kimi(), conversation()
    text = {key: inputs[key] for key in ("input_ids", "text_input_ids")}
    expected, whole = model(**text), model(**inputs)
    with patch(model, [EARLY, LATE]) as handle:
        assert torch.equal(model(**text)[1], expected[1])
        assert handle.stats is None
    assert torch.equal(model(**inputs)[0], whole[0])
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_audio_tokens_are_those_of_the_mask_eighty_milliseconds_each():
    family = FAMILIES["kimi_audio"]
    assert family.token_seconds(kimi().config) == 0.08
    assert family.encoder(kimi()) is None
    with pytest.raises(NotImplementedError, match="is_continuous_mask"):
        family.audio_token_id(kimi().config)
    with patch(kimi(), [Site(0, -1.0)]) as handle:
        kimi()(**conversation(24))
        assert (handle.stats.sites[0].audio_before, handle.stats.sites[0].audio_after) == ([24], [1])


def refused(match: str, error: type[Exception] = NotImplementedError):
    return pytest.raises(error, match=match)


def test_refusals():
    model, inputs = kimi(), conversation()
    two = {key: torch.cat([inputs[key]] * 2) for key in ("input_ids", "text_input_ids", "is_continuous_mask")}
    with patch(model, [EARLY]):
        with refused("one conversation a call.*batch of 2"):
            model(**inputs | two)
        with refused("one conversation a call, without padding"):
            model(**inputs, attention_mask=torch.zeros_like(inputs["input_ids"]))
        with refused("audio positions are found in is_continuous_mask"):
            model(**inputs | {"is_continuous_mask": None})
        with refused("labels cannot be used"):
            model(**inputs, labels=inputs["input_ids"])
        cache = model(**inputs)[2]
        with refused("filled KV cache"):
            model(**inputs, past_key_values=cache)
        ids = torch.tensor([[20]])
        with refused("position_ids is None while decoding", ValueError):
            model(input_ids=ids, text_input_ids=ids, past_key_values=cache)
    with refused("pooled by affinity_pool.patch.*start with a new cache", RuntimeError):
        model(input_ids=ids, text_input_ids=ids, position_ids=torch.tensor([[40]]), past_key_values=cache)
