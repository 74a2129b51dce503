"""What cannot work is refused in a sentence that says what to do instead."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from random_speech import DUAL, INPUT, PAD, SPEECH, batch, prompt, speech_model, tokens
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM, StaticCache

from affinity_pool.models import Site, patch


def refused(match: str, error: type[Exception] = NotImplementedError):
    return pytest.raises(error, match=match)


def test_right_padding(model, dual):
    with patch(model, dual), refused("right padding.*pad on the left"):
        model(**batch(SPEECH, side="right"))


def test_padding_on_both_sides(model, speech, dual):
    speech["attention_mask"][2, -1] = 0
    with patch(model, dual), refused("padding on both sides.*pad on the left"):
        model(**speech)


def test_logits_at_positions(model, speech):
    with patch(model, DUAL), refused("logits_to_keep must be an int"):
        model(**speech, logits_to_keep=torch.tensor([0, 5]))


def test_masks_of_other_numbers_than_one(model, speech, dual):
    with patch(model, dual):
        expected = model(**speech).logits
        assert torch.equal(model(**speech | {"attention_mask": 2 * speech["attention_mask"]}).logits, expected)


def test_unexpanded_placeholders(model, dual):
    row = prompt("ab", 20, "cd")
    keep = torch.tensor([0, 1, 2, 22, 23])
    row |= {key: row[key][:, keep] for key in ("input_ids", "attention_mask")}
    with patch(model, dual), refused("expanded the audio placeholders itself.*Let the processor"):
        model(**row)


old = pytest.mark.skipif(
    transformers.__version__.startswith("4.55"), reason="transformers 4.55 refuses or lacks these caches itself"
)


@old
def test_static_cache_in_generate(model, speech):
    with patch(model, DUAL), refused("got StaticCache.*Leave cache_implementation out"):
        tokens(model, speech, cache_implementation="static")


@old
def test_a_cache_with_static_layers(model, speech):
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=64)
    with patch(model, DUAL), refused("got StaticCache.*a DynamicCache"):
        model(**speech, past_key_values=cache)


@old
def test_a_dynamic_cache_with_sliding_layers(model, speech):
    from transformers.cache_utils import DynamicSlidingWindowLayer

    cache = DynamicCache()
    cache.layers = [DynamicSlidingWindowLayer(sliding_window=8) for _ in range(4)]
    with patch(model, DUAL), refused("plain layers.*sliding-window"):
        model(**speech, past_key_values=cache)


def test_an_offloaded_cache(model, speech):
    cache = DynamicCache()
    cache.offloading = True
    with patch(model, DUAL), refused("got an offloaded one.*DynamicCache"):
        model(**speech, past_key_values=cache)


def test_audio_on_top_of_a_filled_cache(model, speech):
    with patch(model, DUAL):
        cache = model(**speech).past_key_values
        with refused("filled KV cache.*prefill the whole conversation afresh"):
            model(**speech, past_key_values=cache)


def test_a_four_dimensional_mask(model, speech):
    speech["attention_mask"] = torch.ones(3, 1, 39, 39, dtype=torch.bool)
    with patch(model, DUAL), refused(r"2-D, \[batch, tokens\]"):
        model(**speech)


def test_a_mask_of_another_width(model, dual):
    row = SPEECH[0]
    with patch(model, dual), refused("one entry for each token", ValueError):
        model(**row | {"attention_mask": torch.ones(1, 50, dtype=torch.long)}, use_cache=False)


def test_attention_implementations_without_a_known_mask(speech):
    model = copy.deepcopy(speech_model())
    decoder = next(module for module in model.modules() if type(module).__name__ == "Qwen2Model")
    decoder.config._attn_implementation = "flex_attention"
    with patch(model, DUAL), refused("'flex_attention' is not supported.*set_attn_implementation"):
        model(**speech)


def test_a_pooled_cache_after_its_patch_is_gone(model, speech):
    with patch(model, DUAL):
        cache = model(**speech).past_key_values
    ids = torch.full((3, 1), 20)
    with refused("pooled by affinity_pool.patch.*start with a new cache", RuntimeError):
        model(input_ids=ids, past_key_values=cache)
    for sites, positions in ([INPUT], "keep"), (DUAL, "compact"):
        with (
            patch(model, sites, positions=positions),
            refused("Continue it on a model patched at layers 0, 2 with positions='keep'", RuntimeError),
        ):
            model(input_ids=ids, past_key_values=cache)


def test_a_pooled_cache_on_another_model(model, speech):
    other = copy.deepcopy(speech_model())
    with patch(model, DUAL):
        cache = model(**speech).past_key_values
        with refused("no patch like that is at work", RuntimeError):
            other(input_ids=torch.full((3, 1), 20), past_key_values=cache)


def test_patching_twice(model):
    with patch(model, DUAL), refused("patched already.*remove", RuntimeError):
        patch(model, DUAL)
    patch(model, DUAL).remove()


def test_unsupported_architectures_are_named():
    config = Qwen2Config(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        pad_token_id=PAD,
    )
    with refused(r"Qwen2ForCausalLM \(model_type 'qwen2'\) is not supported, only .*qwen2_audio"):
        patch(Qwen2ForCausalLM(config))


def test_things_that_are_no_model():
    with refused("model must be a transformers model, got str", TypeError):
        patch("Qwen/Qwen2-Audio-7B")


def test_decoders_without_full_attention_everywhere():
    model = copy.deepcopy(speech_model())
    decoder = next(module for module in model.modules() if type(module).__name__ == "Qwen2Model")
    decoder.config.layer_types = ["full_attention", "sliding_attention"] * 2
    with refused("sliding_attention.*use_sliding_window=False"):
        patch(model, DUAL)


@pytest.mark.parametrize(
    ("sites", "error", "match"),
    [
        ([], ValueError, "sites is empty"),
        ([INPUT, Site(0, 0.5)], ValueError, "two sites at one layer"),
        ([Site(4)], ValueError, "layers 0 to 3"),
        ([(0, 0.9, 1)], TypeError, "must hold affinity_pool.Site"),
        (3, TypeError, "a preset, a list of Site or a path"),
        ("agressive", FileNotFoundError, "neither a preset .conservative, aggressive, aggressive-counted, memory. nor"),
    ],
)
def test_sites_that_make_no_sense(model, sites, error, match):
    with refused(match, error):
        patch(model, sites)


def test_positions_that_are_unknown(model):
    with refused("positions must be 'keep' or 'compact', got 'dense'", ValueError):
        patch(model, DUAL, positions="dense")
