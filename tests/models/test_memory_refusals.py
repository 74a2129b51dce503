"""What cannot work where memory is pooled, each refused in a sentence that says what to do instead."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from random_encoder_decoders import (
    KEPT,
    PROMPT,
    SITE,
    logits,
    random_model,
    row,
    speech,
)
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from affinity_pool.models import Site, patch
from affinity_pool.models.families import family_of


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
