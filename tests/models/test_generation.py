"""What ``generate`` offers beyond greedy decoding, and what callers do with the cache it returns."""

from __future__ import annotations

import copy

import pytest
import torch
from random_speech import SPEECH, batch, prompt, speech_model, tokens

from affinity_pool.models import Site, patch


def test_sampling_with_one_seed_draws_the_same_tokens_with_and_without_cache(any_model, speech, dual):
    with patch(any_model, dual):
        torch.manual_seed(3)
        cached = tokens(any_model, speech, do_sample=True, temperature=0.7)
        torch.manual_seed(3)
        assert torch.equal(cached, tokens(any_model, speech, do_sample=True, temperature=0.7, use_cache=False))


@pytest.mark.parametrize("attention", ["plain", "proportional"])
@pytest.mark.parametrize("positions", ["keep", "compact"])
def test_beam_search_of_a_batch_finds_the_beams_of_each_row(any_model, speech, positions, dual, attention):
    with patch(any_model, dual, positions=positions, attention=attention):
        together = tokens(any_model, speech, num_beams=3)
        assert torch.equal(together, tokens(any_model, speech, num_beams=3, use_cache=False))
        for row, alone in zip(together, SPEECH, strict=True):
            assert torch.equal(row, tokens(any_model, alone, num_beams=3)[0])


def test_several_returned_sequences_continue_one_prompt(model, dual):
    with patch(model, dual):
        out = tokens(model, SPEECH[0], num_beams=4, num_return_sequences=4)
        assert out.shape[0] == 4
        assert torch.equal(out[0], tokens(model, SPEECH[0], num_beams=4)[0])


@pytest.mark.parametrize("attention", ["plain", "proportional"])
@pytest.mark.parametrize("positions", ["keep", "compact"])
def test_prompt_lookup_decoding_gives_the_greedy_tokens(any_model, positions, dual, attention):
    """Assisted decoding prefills candidates with the prompt and crops the cache when it rejects them."""
    row = prompt("ab", 20, "cdecdecde", seed=11)
    row["input_ids"][0, -9:] = torch.tensor([40, 41, 42] * 3)
    with patch(any_model, dual, positions=positions, attention=attention):
        greedy = tokens(any_model, row, new=12, eos_token_id=1)
        assert torch.equal(tokens(any_model, row, new=12, eos_token_id=1, prompt_lookup_num_tokens=3), greedy)


def test_an_assistant_model_gives_the_greedy_tokens(model, dual):
    assistant = copy.deepcopy(speech_model())
    with torch.no_grad():
        assistant.get_output_embeddings().weight.add_(0.02)  # agrees with the model now and then
    with patch(model, dual):
        greedy = tokens(model, SPEECH[0], new=12)
        assert torch.equal(tokens(model, SPEECH[0], new=12, assistant_model=assistant), greedy)


def test_bfloat16_pools_and_generates(dual):
    model = speech_model(dtype=torch.bfloat16)
    with patch(model, dual) as handle:
        out = tokens(model, batch(SPEECH))
        assert out.shape == (3, 6)
        assert handle.stats.kv_bytes_saved > 0
        assert handle.stats.sites[0].counts.sum() == batch(SPEECH)["attention_mask"].sum()


def test_gradients_reach_the_audio_encoder_through_the_groups(dual):
    with torch.inference_mode(False), torch.enable_grad():
        model = copy.deepcopy(speech_model())
        with patch(model, dual):
            model(**{key: x.clone() for key, x in SPEECH[0].items()}).logits[0, -1].sum().backward()
        assert next(p for name, p in model.named_parameters() if "projector" in name).grad.abs().sum() > 0


# The returned cache.


def continued(model, cache, rows: int) -> torch.Tensor:
    return model(input_ids=torch.arange(40, 42).expand(rows, -1), past_key_values=cache).logits


def test_a_deep_copy_of_the_cache_continues_like_the_original(model, speech, dual):
    with patch(model, dual):
        cache = model(**speech).past_key_values
        twin = copy.deepcopy(cache)
        assert torch.equal(continued(model, twin, 3), continued(model, cache, 3))


@pytest.mark.parametrize("positions", ["keep", "compact"])
def test_selected_repeated_and_reordered_rows_keep_their_padding_and_positions(any_model, speech, positions, dual):
    rows = torch.tensor([2, 0])
    with patch(any_model, dual, positions=positions):
        expected = continued(any_model, any_model(**speech).past_key_values, 3)
        cache = any_model(**speech).past_key_values
        cache.batch_select_indices(rows)
        torch.testing.assert_close(continued(any_model, cache, 2), expected[rows])
        cache = any_model(**speech).past_key_values
        cache.batch_repeat_interleave(2)
        torch.testing.assert_close(continued(any_model, cache, 6), expected.repeat_interleave(2, 0))
        cache = any_model(**speech).past_key_values
        cache.reorder_cache(torch.tensor([1, 2, 0]))
        torch.testing.assert_close(continued(any_model, cache, 3), expected[[1, 2, 0]])


def test_cropping_decoded_tokens_undoes_them(any_model, speech, dual):
    with patch(any_model, dual):
        cache = any_model(**speech).past_key_values
        length = cache.get_seq_length()
        expected = continued(any_model, cache, 3)
        cache.crop(-2)
        assert cache.get_seq_length() == length
        torch.testing.assert_close(continued(any_model, cache, 3), expected)
        cache.crop(length)  # the absolute form of transformers 4
        torch.testing.assert_close(continued(any_model, cache, 3), expected)
        cache.crop(0)
        assert cache.get_seq_length() == length + 2


@pytest.mark.parametrize("positions", ["keep", "compact"])
def test_cropping_a_padded_turn_undoes_it(model, positions, dual):
    rows, ids = batch(SPEECH[:2]), torch.arange(40, 44).expand(2, -1)
    width = rows["attention_mask"].shape[1]
    turn = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    with patch(model, dual, positions=positions):
        cache = model(**rows).past_key_values
        untouched = copy.deepcopy(cache)
        mask = torch.cat([rows["attention_mask"], turn], 1)
        model(input_ids=ids, attention_mask=mask, past_key_values=cache)
        cache.crop(-4)
        assert cache.get_seq_length() == width
        expected = continued(model, untouched, 2)
        torch.testing.assert_close(continued(model, cache, 2), expected)


def test_hiding_a_part_of_the_pooled_prompt_later_is_refused(model, dual):
    rows, ids = batch(SPEECH[:2]), torch.arange(40, 44).expand(2, -1)
    mask = torch.cat([rows["attention_mask"], torch.ones_like(ids)], 1)
    with patch(model, dual):
        cache = model(**rows).past_key_values
        hidden = mask.clone()
        hidden[:, -10] = 0
        with pytest.raises(NotImplementedError, match=r"attention_mask is not what it was.*Prefill the conversation"):
            model(input_ids=ids, attention_mask=hidden, past_key_values=cache)
        model(input_ids=ids, attention_mask=mask, past_key_values=cache)


def test_cropping_the_text_after_the_audio_equals_a_shorter_prompt(model, dual):
    row = SPEECH[0]
    shorter = row | {key: row[key][:, :-3] for key in ("input_ids", "attention_mask")}
    with patch(model, dual):
        cache = model(**row).past_key_values
        cache.crop(-3)
        expected = continued(model, model(**shorter).past_key_values, 1)
        torch.testing.assert_close(continued(model, cache, 1), expected)


def test_cropping_into_the_audio_is_refused(model, dual):
    with patch(model, dual):
        cache = model(**SPEECH[0]).past_key_values
        with pytest.raises(NotImplementedError, match=r"reaches into the pooled audio.*prefill the shorter prompt"):
            cache.crop(-7)  # six text tokens follow the audio


def test_a_prompt_that_ends_in_audio_and_merges_to_one_token_decodes(model):
    rows = [prompt("ab", 10, seed=12), prompt("a", 30, seed=13)]
    with patch(model, [Site(0, -1.0, 1)]) as handle:
        out = tokens(model, batch(rows))
        assert handle.stats.sites[0].audio_after == [1, 1]
        for row, alone in zip(out, rows, strict=True):
            assert torch.equal(row, tokens(model, alone)[0])
