"""Site "memory": what a decoder attends to, pooled. The judge: models whose encoders return memory pooled by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from random_encoder_decoders import (
    BOTH,
    EVERY,
    KEPT,
    PROMPT,
    SITE,
    features,
    logits,
    pooled_by_hand,
    random_model,
    row,
    some,
    speech,
)
from transformers.modeling_outputs import BaseModelOutput

from affinity_pool.models import Site, patch, unpatch
from affinity_pool.study.reductions import uniform_merge

RULES = pytest.mark.parametrize("site", [SITE, KEPT, Site("memory", threshold=0.9, window=3)], ids=["1", "keep", "3"])
NONE = Site("memory", threshold=2.0, window=1)


@BOTH
@RULES
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_whisper_attends_to_what_was_pooled(implementation, site, attention):
    model, inputs = random_model(attention=implementation), speech()
    with patch(model, [site], attention=attention) as handle:
        pooled = logits(model, inputs)
        (stats,) = handle.stats.sites
    assert all(1 < after < 60 for after in stats.tokens_after)
    assert stats.layer == "memory"
    with pooled_by_hand(model, site, attention):
        for index in range(3):
            alone = logits(model, row(inputs, index))
            torch.testing.assert_close(pooled[index : index + 1], alone, atol=2e-5, rtol=2e-5)


@BOTH
@EVERY
def test_every_family_attends_to_what_was_pooled(family, attention):
    """Rows of different lengths: the padding that the encoder's mask tells is neither pooled nor attended to."""
    model, inputs, site = random_model(family), speech(family), some(family)
    with patch(model, [site], attention=attention) as handle:
        together = logits(model, inputs)
        before, after = handle.stats.sites[0].tokens_before, handle.stats.sites[0].tokens_after
        for index in range(3):
            torch.testing.assert_close(
                together[index : index + 1], logits(model, row(inputs, index)), atol=2e-5, rtol=2e-5
            )
    assert any(b > a > 1 for a, b in zip(after, before, strict=True))
    whole = {name: value for name, value in row(inputs, 0).items() if name != "attention_mask"}
    with pooled_by_hand(model, site, attention):
        torch.testing.assert_close(together[:1], logits(model, whole), atol=5e-5, rtol=5e-5)


@EVERY
@pytest.mark.parametrize("site", [NONE, Site("memory", keep=1.0)], ids=["threshold", "keep"])
def test_nothing_merged_is_the_model_itself(family, site):
    model, inputs = random_model(family), speech(family)
    before = logits(model, inputs, output_hidden_states=True)
    for attention in ("plain", "proportional"):
        with patch(model, [site], attention=attention) as handle:
            assert torch.equal(logits(model, inputs), before)
            assert handle.stats.kv_bytes_saved == 0


def test_removing_the_patch_restores_everything():
    model, inputs = random_model(), speech()
    before, classes = logits(model, inputs), [type(module) for module in model.modules()]
    with patch(model, [SITE], attention="proportional"):
        assert not torch.equal(logits(model, inputs), before)
        twin = copy.deepcopy(model)
    assert torch.equal(logits(model, inputs), before)
    assert torch.equal(logits(twin, inputs), before)
    assert [type(module) for module in model.modules()] == classes
    patch(model, [SITE])
    unpatch(model)
    assert torch.equal(logits(model, inputs), before)


def test_a_merge_of_everything_leaves_one_key():
    model, inputs = random_model(), speech()
    with patch(model, [Site("memory", threshold=-1.0, window=1)], attention="proportional") as handle:
        merged = logits(model, inputs)
        assert handle.stats.sites[0].tokens_after == [1, 1, 1]
    with patch(model, [Site("memory", threshold=-1.0, window=1)]):  # the weight of one key alone means nothing
        torch.testing.assert_close(logits(model, inputs), merged)


def test_statistics_count_keys_and_values_of_cross_attention():
    model, inputs = random_model(), speech()
    with patch(model, [KEPT]) as handle:
        logits(model, inputs)
        stats = handle.stats
    assert stats.sites[0].tokens_before == stats.sites[0].audio_before == [60, 60, 60]
    assert stats.sites[0].tokens_after == stats.sites[0].audio_after == [24, 24, 24]
    assert stats.sites[0].audio_kept == 0.4
    per_token = 2 * model.config.decoder_layers * model.config.d_model * 4
    assert stats.kv_bytes == 3 * 24 * per_token
    assert stats.kv_bytes_saved == 3 * 36 * per_token
    assert int(stats.sites[0].counts.sum()) == 180


def test_a_share_is_known_without_looking(monkeypatch):
    """The host waits for the device to tell it nothing: Whisper's rows are all as long."""
    model, inputs = random_model(), speech()

    def read(*_):
        raise AssertionError("the host has read a tensor")

    with patch(model, [KEPT], attention="proportional"):
        for name in ("tolist", "item", "cpu", "__bool__"):
            monkeypatch.setattr(torch.Tensor, name, read)
        logits(model, inputs)
    with patch(model, [SITE]), pytest.raises(AssertionError, match="the host has read"):
        logits(model, inputs)


@BOTH
def test_attention_is_told_over_the_encoders_tokens(attention):
    model, inputs = random_model(attention="eager"), speech()
    with patch(model, [SITE], attention=attention) as handle:
        weights = model(**inputs, decoder_input_ids=PROMPT.expand(3, -1), output_attentions=True).cross_attentions
        ids = handle.stats.sites[0].segment_ids
    for of_layer in weights:
        assert of_layer.shape == (3, 2, 5, 60)
        torch.testing.assert_close(of_layer.sum(-1), torch.ones(3, 2, 5))
        for index in range(3):
            for group in range(int(ids[index].max()) + 1):
                inside = of_layer[index, :, :, ids[index] == group]
                assert bool((inside == inside[..., :1]).all())
    if attention == "proportional":
        with pooled_by_hand(model, SITE, attention):
            by_hand = model(**inputs, decoder_input_ids=PROMPT.expand(3, -1), output_attentions=True).cross_attentions
        for ours, theirs in zip(weights, by_hand, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@EVERY
def test_attention_beside_padding_is_told_over_all_of_it(family):
    model, inputs = copy.deepcopy(random_model(family)), speech(family)
    model.set_attn_implementation("eager")
    unpooled = model(**inputs, decoder_input_ids=PROMPT.expand(3, -1), output_attentions=True).cross_attentions
    with patch(model, [some(family)], attention="proportional"):
        pooled = model(**inputs, decoder_input_ids=PROMPT.expand(3, -1), output_attentions=True).cross_attentions
    for ours, theirs in zip(pooled, unpooled, strict=True):
        assert ours.shape == theirs.shape
        assert bool((ours[theirs == 0] == 0).all())


def test_memory_made_beforehand_is_pooled_too():
    model, inputs = random_model(), speech()
    memory = model.get_encoder()(inputs["input_features"])
    with patch(model, [SITE], attention="proportional"):
        once = model(encoder_outputs=memory, decoder_input_ids=PROMPT.expand(3, -1)).logits
        assert torch.equal(once, logits(model, inputs))
        bare = model(encoder_outputs=BaseModelOutput(memory[0]), decoder_input_ids=PROMPT.expand(3, -1)).logits
        assert torch.equal(bare, once)


def test_a_reduction_of_ones_own():
    """A reduction pads on the left; the encoder's mask, Speech2Text's here, pads on the right."""
    for family in ("whisper", "speech_to_text"):
        model, inputs = random_model(family), speech(family)
        with patch(model, [Site("memory", keep=0.5)]) as handle:
            logits(model, inputs)
            before, after = handle.stats.sites[0].tokens_before, handle.stats.sites[0].tokens_after
        with patch(model, [Site("memory", reduction=uniform_merge(torch.tensor(after)))]) as handle:
            together = logits(model, inputs)
            (stats,) = handle.stats.sites
        assert stats.tokens_after == after
        for index in range(3):
            ids = stats.segment_ids[index]
            assert ids[: before[index]].unique_consecutive().tolist() == list(range(after[index]))
            assert bool((ids[before[index] :] == -1).all())
            with patch(model, [Site("memory", reduction=uniform_merge(torch.tensor(after[index : index + 1])))]):
                alone = logits(model, row(inputs, index))
            torch.testing.assert_close(together[index : index + 1], alone, atol=2e-5, rtol=2e-5)


def test_bfloat16_attends_to_what_was_pooled():
    model, inputs = random_model(dtype=torch.bfloat16), speech()
    inputs = {name: value.bfloat16() for name, value in inputs.items()}
    for attention in ("plain", "proportional"):
        with patch(model, [SITE], attention=attention):
            pooled = logits(model, row(inputs, 0))
        with pooled_by_hand(model, SITE, attention):
            by_hand = logits(model, row(inputs, 0))
        torch.testing.assert_close(pooled, by_hand, atol=0.06, rtol=0.06)


def test_labels_and_gradients_go_through_pooled_memory():
    with torch.inference_mode(False), torch.enable_grad():
        model = copy.deepcopy(random_model())
        inputs = {name: value.clone() for name, value in speech().items()}
        labels = torch.arange(6)[None].repeat(3, 1)
        losses, gradients = [], []
        with patch(model, [SITE], attention="proportional"):
            losses.append(model(**inputs, labels=labels).loss)
            losses[0].backward()
            gradients.append(model.model.encoder.conv1.weight.grad.clone())
        model.zero_grad()
        with pooled_by_hand(model, SITE, "proportional"):
            losses.append(model(**inputs, labels=labels).loss)
            losses[1].backward()
            gradients.append(model.model.encoder.conv1.weight.grad.clone())
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-3)


def test_layer_drop_in_training_may_skip_layers():
    with torch.inference_mode(False):
        model = copy.deepcopy(random_model()).train()
        model.model.decoder.layerdrop = 0.99
        with patch(model, [SITE], attention="proportional"):
            assert torch.isfinite(logits(model, {"input_features": features(0)[None].clone()})).all()


def test_numbers_that_are_none_never_merge():
    model, inputs = random_model(), speech()
    memory = model.get_encoder()(inputs["input_features"])
    memory.last_hidden_state[1, 10] = float("nan")
    with patch(model, [SITE]) as handle:
        model(encoder_outputs=memory, decoder_input_ids=PROMPT.expand(3, -1))
        ids, counts = handle.stats.sites[0].segment_ids[1], handle.stats.sites[0].counts[1]
    assert int(counts[ids[10]]) == 1


def test_columns_that_stand_for_no_row_are_seen():
    """A reduction's lengths say what is there, its counts what it is made of."""

    def uncounted(x, lengths, mergeable):
        found = Site(0, keep=0.4).reduce(x, lengths, mergeable)
        found = found._replace(lengths=found.lengths - torch.tensor([0, 3, 5][: len(x)], dtype=torch.int32))
        return found._replace(counts=torch.zeros_like(found.counts))

    model = random_model()
    with patch(model, [Site("memory", reduction=uncounted)]):
        together = logits(model, speech())
        torch.testing.assert_close(together[:1], logits(model, row(speech(), 0)), atol=2e-5, rtol=2e-5)
