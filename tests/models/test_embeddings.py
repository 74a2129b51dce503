"""Embeddings made beforehand: pooled where the caller says which are audio, refused where nobody does."""

from __future__ import annotations

import pytest
import torch
import transformers
from random_speech import AUDIO, DUAL, SPEECH, batch, embedded, tokens

from affinity_pool.models import patch


@pytest.mark.parametrize("positions", ["keep", "compact"])
def test_positions_beside_embeddings_pool_what_ids_and_features_pool(any_model, speech, positions, dual):
    ready, audio = embedded(any_model, speech), speech["input_ids"] == AUDIO
    with patch(any_model, dual, positions=positions) as handle:
        expected, counts = any_model(**speech).logits, handle.stats.sites[1].counts
        assert torch.equal(any_model(**ready, audio_positions=audio).logits, expected)
        assert torch.equal(handle.stats.sites[1].counts, counts)


generates = pytest.mark.skipif(
    transformers.__version__.startswith("4."), reason="transformers 4 takes no embeddings in generate() of this model"
)


@generates
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_generate_takes_positions_beside_embeddings(model, speech, options, dual):
    ready, audio = embedded(model, speech), speech["input_ids"] == AUDIO
    with patch(model, dual) as handle:
        expected = tokens(model, speech, **options)
        widths = handle.stats.sites[0].tokens_after
        said = model.generate(**ready, audio_positions=audio, max_new_tokens=6, do_sample=False, **options)
        assert torch.equal(said, expected)
        assert handle.stats.sites[0].tokens_after == widths


def test_a_prompt_cache_filled_from_embeddings_is_continued(model):
    row = SPEECH[0]
    ready = embedded(model, row)
    question = torch.arange(40, 43)[None]
    with patch(model, DUAL):
        cache = model(**ready, audio_positions=row["input_ids"] == AUDIO).past_key_values
        expected = model(input_ids=question, past_key_values=model(**row).past_key_values).logits
        assert torch.equal(model(input_ids=question, past_key_values=cache).logits, expected)


def test_embeddings_without_audio_pass_untouched(model):
    text = batch([{"input_ids": torch.arange(20, 30)[None], "attention_mask": torch.ones(1, 10, dtype=torch.long)}])
    ready = embedded(model, text)
    plain = model(**text).logits
    with patch(model, DUAL) as handle:
        none = torch.zeros(1, 10, dtype=torch.bool)
        assert torch.equal(model(**ready, audio_positions=none).logits, plain)
        assert handle.stats is None


@pytest.mark.parametrize("ways", ["model", pytest.param("generate", marks=generates)])
def test_embeddings_of_which_nobody_says_what_is_audio_are_refused(model, speech, ways):
    ready = embedded(model, speech)
    with patch(model, DUAL), pytest.raises(ValueError, match=r"inputs_embeds may hold audio.*pass audio_positions"):
        model(**ready) if ways == "model" else model.generate(**ready, max_new_tokens=2)


def test_embeddings_on_a_filled_cache_are_refused(model, speech):
    ready, audio = embedded(model, speech), speech["input_ids"] == AUDIO
    with patch(model, DUAL):
        cache = model(**speech).past_key_values
        with pytest.raises(ValueError, match=r"inputs_embeds may hold audio"):
            model(inputs_embeds=ready["inputs_embeds"], past_key_values=cache)
        with pytest.raises(NotImplementedError, match=r"audio on top of a filled KV cache"):
            model(inputs_embeds=ready["inputs_embeds"], audio_positions=audio, past_key_values=cache)


@pytest.mark.parametrize(
    "wrong", [torch.ones(3, 5, dtype=torch.bool), torch.ones(3, 39), [[True] * 39] * 3], ids=["shape", "dtype", "list"]
)
def test_positions_that_do_not_fit_are_refused(model, speech, wrong):
    ready = embedded(model, speech)
    with (
        patch(model, DUAL),
        pytest.raises(ValueError, match=r"audio_positions must be a bool tensor of shape \[3, 39\]"),
    ):
        model(**ready, audio_positions=wrong)


def test_positions_without_embeddings_are_refused(model, speech):
    audio = speech["input_ids"] == AUDIO
    text = {key: speech[key] for key in ("input_ids", "attention_mask")}
    with patch(model, DUAL):
        with pytest.raises(ValueError, match=r"this call has features"):
            model(**speech, audio_positions=audio)
        with pytest.raises(ValueError, match=r"audio_positions goes with inputs_embeds, and this call has none"):
            model(**text, audio_positions=audio)


def test_features_beside_embeddings_are_refused(model, speech):
    del speech["input_ids"]
    with patch(model, DUAL), pytest.raises(NotImplementedError, match=r"input_ids.*pass input_ids instead"):
        model(**speech, inputs_embeds=torch.zeros(3, 39, 64))


def test_an_unpatched_model_knows_no_positions(model, speech):
    with patch(model, DUAL):
        pass
    with pytest.raises((TypeError, ValueError)):
        model.generate(**speech, audio_positions=speech["input_ids"] == AUDIO, max_new_tokens=2)
