"""Site "memory": what a decoder attends to, pooled. The judge: models whose encoders return memory pooled by hand."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
import transformers
from random_encoder_decoders import (
    FAMILIES,
    KEPT,
    PROMPT,
    SITE,
    features,
    pooled_by_hand,
    random_model,
    row,
    speech,
)
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from affinity_pool.models import Site, patch, unpatch
from affinity_pool.models.families import family_of
from affinity_pool.study.reductions import uniform_merge

BOTH = pytest.mark.parametrize("attention", ["plain", "proportional"])
RULES = pytest.mark.parametrize("site", [SITE, KEPT, Site("memory", threshold=0.9, window=3)], ids=["1", "keep", "3"])
EVERY = pytest.mark.parametrize("family", FAMILIES)
# Thresholds at which some of every family's random memory merges, and not all of it.
THRESHOLD = {"whisper": 0.85, "moonshine": 0.7, "speech_to_text": 0.98, "seamless_m4t_v2": 0.55}
NONE = Site("memory", threshold=2.0, window=1)


def some(family: str) -> Site:
    return Site("memory", threshold=THRESHOLD[family], window=1)


def logits(model, inputs, tokens=PROMPT, **options):
    rows = next(iter(inputs.values())).shape[0]
    return model(**inputs, decoder_input_ids=tokens.expand(rows, -1), **options).logits


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
@BOTH
def test_a_step_with_cache_is_one_without(family, attention):
    model, inputs, site = random_model(family), speech(family), some(family)
    extra = torch.arange(7, 13)[None].expand(3, -1)
    with patch(model, [site], attention=attention):
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        output = model(**inputs, decoder_input_ids=PROMPT.expand(3, -1), past_key_values=cache, use_cache=True)
        for step in range(extra.shape[1]):
            output = model(**inputs, decoder_input_ids=extra[:, step : step + 1], past_key_values=cache)
        whole = torch.cat([PROMPT.expand(3, -1), extra], 1)
        torch.testing.assert_close(output.logits[:, -1], logits(model, inputs, whole, use_cache=False)[:, -1])


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
def test_the_cache_holds_pooled_keys_and_values(attention):
    model, inputs = random_model(), speech()
    with patch(model, [SITE], attention=attention) as handle:
        output = model(**inputs, decoder_input_ids=PROMPT.expand(3, -1), use_cache=True)
        width = max(handle.stats.sites[0].tokens_after)
    assert {layer.keys.shape[2] for layer in output.past_key_values.cross_attention_cache.layers} == {width}
    assert output.encoder_last_hidden_state.shape[1] == 60  # what is asked of the encoder stays as it is


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


def test_a_cache_waits_for_a_patch_and_survives_a_pickle():
    model, inputs = random_model(), speech()
    step = torch.tensor([[7]]).expand(3, -1)
    with patch(model, [SITE], attention="proportional"):
        cache = model(**inputs, decoder_input_ids=PROMPT.expand(3, -1), use_cache=True).past_key_values
        kept = pickle.loads(pickle.dumps(cache))
        wanted = model(**inputs, decoder_input_ids=step, past_key_values=cache).logits
    with pytest.raises(RuntimeError, match=r"pooled by affinity_pool\.patch, and no patch like that"):
        model(**inputs, decoder_input_ids=step, past_key_values=kept)
    with patch(model, [KEPT]):  # the sizes are the cache's
        assert torch.equal(model(**inputs, decoder_input_ids=step, past_key_values=kept).logits, wanted)
    kept.reset()
    assert type(kept) is EncoderDecoderCache
    assert torch.equal(
        model(**inputs, decoder_input_ids=PROMPT.expand(3, -1), past_key_values=kept).logits, logits(model, inputs)
    )


def test_an_unpooled_cache_goes_on_unpooled():
    model, inputs = random_model(), speech()
    step = torch.tensor([[7]]).expand(3, -1)
    cache = model(**inputs, decoder_input_ids=PROMPT.expand(3, -1), use_cache=True).past_key_values
    twin = copy.deepcopy(cache)
    wanted = model(**inputs, decoder_input_ids=step, past_key_values=cache).logits
    with patch(model, [SITE]):
        assert torch.equal(model(**inputs, decoder_input_ids=step, past_key_values=twin).logits, wanted)


def test_batches_of_a_cache_are_selected_and_repeated():
    model, inputs = random_model(), speech()
    for attention in ("plain", "proportional"):
        with patch(model, [SITE], attention=attention):
            cache = model(**inputs, decoder_input_ids=PROMPT.expand(3, -1), use_cache=True).past_key_values
            cache.reorder_cache(torch.tensor([1, 2, 0]))
            cache.batch_select_indices(torch.tensor([1, 2]))
            cache.batch_repeat_interleave(2)
            rows = [2, 2, 0, 0]
            chosen = {name: value[rows] for name, value in inputs.items()}
            step = torch.tensor([[7]]).expand(4, -1)
            stepped = model(**chosen, decoder_input_ids=step, past_key_values=cache).logits[:, -1]
            whole = torch.cat([PROMPT, torch.tensor([[7]])], 1)
            torch.testing.assert_close(stepped, logits(model, chosen, whole)[:, -1])


# What cannot work.


def refused(match: str):
    return pytest.raises(NotImplementedError, match=match)


def test_other_sites_of_an_encoder_decoder_model():
    model = random_model()
    with pytest.raises(ValueError, match="site at layer 0, but an encoder-decoder model has one site"):
        patch(model, [Site(0)])
    with pytest.raises(ValueError, match="site at layer 0, but"):
        patch(model, [SITE, Site(0)])
    with pytest.raises(ValueError, match="preset 'aggressive' is for speech language models"):
        patch(model)
    with pytest.raises(ValueError, match="two sites"):
        patch(model, [SITE, KEPT])
    with pytest.raises(ValueError, match=r"positions='compact'.*has none"):
        patch(model, [SITE], positions="compact")
    with pytest.raises(ValueError, match="'plain' or 'proportional', got 'weighted'"):
        patch(model, [SITE], attention="weighted")
    with pytest.raises(ValueError, match=r"layer must be an int .* or 'memory', got 'input'"):
        Site("input")


def test_memory_of_a_speech_language_model():
    from random_speech import speech_model

    with pytest.raises(ValueError, match="no encoder that its decoder attends to"):
        patch(speech_model(), [SITE])


def test_heads_without_a_decoder_that_attends():
    config = random_model().config
    for head in (transformers.WhisperForAudioClassification, transformers.WhisperForCausalLM):
        with refused(f"{head.__name__} has no decoder that attends to its encoder"):
            patch(head(copy.deepcopy(config)), [SITE])


def test_heads_of_seamless_that_go_on_from_the_text():
    config = random_model("seamless_m4t_v2").config
    model = transformers.SeamlessM4Tv2Model.__new__(transformers.SeamlessM4Tv2Model)
    torch.nn.Module.__init__(model)
    model.config, model.speech_encoder, model.text_encoder = config, torch.nn.Identity(), torch.nn.Identity()
    with refused("SeamlessM4Tv2Model has no decoder that attends"):
        patch(model, [SITE])


def test_caches_of_one_length():
    model = random_model()
    static = EncoderDecoderCache(
        *(transformers.StaticCache(config=model.config, max_cache_len=60, max_batch_size=3) for _ in range(2))
    )
    with patch(model, [SITE]), refused("EncoderDecoderCache of two DynamicCaches"):
        model(**speech(), decoder_input_ids=PROMPT.expand(3, -1), past_key_values=static)
    with patch(model, [SITE]), refused("got DynamicCache"):
        model(**speech(), decoder_input_ids=PROMPT.expand(3, -1), past_key_values=DynamicCache())


def test_flash_attention():
    model = copy.deepcopy(random_model())
    model.config._attn_implementation = "flash_attention_2"
    with patch(model, [SITE]), refused("'flash_attention_2'.*set_attn_implementation"):
        logits(model, speech())
    with patch(model, [SITE], attention="proportional"), refused("proportional.*'flash_attention_2'.*sdpa"):
        logits(model, speech())


def test_gradient_checkpointing_of_the_decoder():
    model = copy.deepcopy(random_model())
    model.gradient_checkpointing_enable()
    model.train()
    with patch(model, [SITE]), refused("gradient checkpointing"):
        logits(model, speech())


def test_activation_checkpointing_of_layers():
    """Layers that run again in the backward pass, outside of any forward: their gradients would be of another mask."""
    with torch.inference_mode(False), torch.enable_grad():
        model = copy.deepcopy(random_model(attention="eager"))
        inputs = {"input_features": features(0)[None].clone()}
        for layer in model.model.decoder.layers:
            layer.forward = functools.partial(torch.utils.checkpoint.checkpoint, layer.forward, use_reentrant=False)
        with patch(model, [SITE], attention="proportional"), pytest.raises(RuntimeError, match="outside of a forward"):
            logits(model, inputs, use_cache=False).sum().backward()


def test_a_cache_that_lost_what_tells_of_it():
    model, inputs = random_model(), speech()
    step = {"decoder_input_ids": torch.tensor([[7]]).expand(3, -1)}
    with patch(model, [SITE]):
        cache = model(**inputs, decoder_input_ids=PROMPT.expand(3, -1), use_cache=True).past_key_values
        bare = EncoderDecoderCache(copy.deepcopy(cache.self_attention_cache), cache.cross_attention_cache)
        bare.self_attention_cache.__class__ = DynamicCache
        wanted = model(**inputs, **step, past_key_values=cache).logits
        kept = copy.deepcopy(bare)
        assert torch.equal(model(**inputs, **step, past_key_values=bare).logits, wanted)  # found again
    with patch(model, [Site("memory", keep=0.3)]):
        with pytest.raises(RuntimeError, match="and 18 were expected in each"):
            model(**inputs, **step, past_key_values=kept)
        half = EncoderDecoderCache(DynamicCache(), DynamicCache())
        hook = model.model.decoder.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(**inputs, decoder_input_ids=PROMPT.expand(3, -1), past_key_values=half)
        hook.remove()
        with pytest.raises(RuntimeError, match="the call that made them did not end"):
            model(**inputs, **step, past_key_values=half)


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


def test_attentions_in_a_tuple():
    with patch(random_model(attention="eager"), [SITE]) as handle, refused("return_dict"):
        handle.model(**speech(), decoder_input_ids=PROMPT.expand(3, -1), output_attentions=True, return_dict=False)


def test_a_decoder_called_around_its_model():
    model = random_model()
    memory = model.get_encoder()(speech()["input_features"])[0]
    with patch(model, [SITE]), pytest.raises(RuntimeError, match="called around the model"):
        model.get_decoder()(input_ids=PROMPT.expand(3, -1), encoder_hidden_states=memory)
    with patch(model, [SITE]), pytest.raises(RuntimeError, match="called around the model"):
        model.get_decoder()(PROMPT.expand(3, -1), None, memory)


def test_padding_in_the_middle_of_features():
    model, inputs = random_model("speech_to_text"), speech("speech_to_text")
    memory = family_of(model).encoder(model)(**row(inputs, 0))[0]
    mask = torch.ones(memory.shape[:2], dtype=torch.long)
    mask[:, :3] = 0
    with patch(model, [SITE]) as handle, refused("ones after its zeros"):
        handle._calls._pool(None, memory, mask)


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
