"""Caches with pooled cross-attention: what they hold, who may go on with them, and how they follow their rows."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from random_encoder_decoders import (
    BOTH,
    EVERY,
    KEPT,
    PROMPT,
    SITE,
    logits,
    random_model,
    some,
    speech,
)
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from affinity_pool.models import Site, patch


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


@BOTH
def test_the_cache_holds_pooled_keys_and_values(attention):
    model, inputs = random_model(), speech()
    with patch(model, [SITE], attention=attention) as handle:
        output = model(**inputs, decoder_input_ids=PROMPT.expand(3, -1), use_cache=True)
        width = max(handle.stats.sites[0].tokens_after)
    assert {layer.keys.shape[2] for layer in output.past_key_values.cross_attention_cache.layers} == {width}
    assert output.encoder_last_hidden_state.shape[1] == 60  # what is asked of the encoder stays as it is


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
