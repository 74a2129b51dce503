"""The patch computes what it says: identity, independence of batch and cache, the pooled forward, exact undo."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from by_hand import pooled_forward
from random_speech import (
    AUDIO,
    CLOSE,
    DEEP,
    DUAL,
    IDLE,
    INPUT,
    LAYERS,
    SITES,
    SPEECH,
    batch,
    prompt,
    qwen2,
    speech_model,
    steps,
    tokens,
)
from transformers import DynamicCache

from affinity_pool.models import Site, patch


def kv_lengths(cache: Any) -> list[int]:
    return [layer.keys.shape[-2] for layer in cache.layers]


# Identity.


idle = pytest.mark.parametrize("sites", IDLE.values(), ids=IDLE)


@idle
def test_sites_at_which_nothing_merges_leave_logits_and_tokens_bit_identical(any_model, speech, sites):
    logits, generated = any_model(**speech).logits, tokens(any_model, speech)
    with patch(any_model, sites) as handle:
        assert torch.equal(any_model(**speech).logits, logits)
        assert torch.equal(tokens(any_model, speech), generated)
        assert handle.stats.kv_bytes_saved == 0


@idle
def test_sites_at_which_nothing_merges_leave_bfloat16_bit_identical(speech, sites):
    model = speech_model(dtype=torch.bfloat16)
    logits = model(**speech).logits
    with patch(model, sites):
        assert torch.equal(model(**speech).logits, logits)


def test_text_only_prompts_pass_untouched(any_model, dual):
    text = batch([prompt("abcdefgh", seed=4), prompt("abc", seed=5)])
    logits, generated = any_model(**text).logits, tokens(any_model, text)
    with patch(any_model, dual) as handle:
        assert torch.equal(any_model(**text).logits, logits)
        assert torch.equal(tokens(any_model, text), generated)
        assert handle.stats is None


def test_a_generated_audio_id_is_text(model, speech):
    with patch(model, DUAL) as handle:
        out = model(**speech)
        before = handle.stats.sites[0].tokens_after
        model(input_ids=torch.full((3, 4), AUDIO), past_key_values=out.past_key_values)
        assert handle.stats.sites[0].tokens_after == before


@pytest.mark.parametrize("positions", ["keep", "compact"])
def test_removing_restores_the_model_bit_for_bit(model, speech, dual, positions):
    logits = model(**speech).logits
    with patch(model, dual, positions=positions) as handle:
        assert model(**speech).logits.shape[1] < logits.shape[1]
        handle.remove()
        assert torch.equal(model(**speech).logits, logits)
    handle.remove()  # twice does no harm
    for module in model.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks


def test_hooks_are_gone_after_an_error_inside_the_patch(model, speech):
    logits = model(**speech).logits
    with pytest.raises(NotImplementedError), patch(model, DUAL):
        model(**speech, logits_to_keep=torch.tensor([0]))
    assert torch.equal(model(**speech).logits, logits)


def test_a_refused_call_does_not_disturb_the_next_one(model, speech):
    with patch(model, DUAL):
        expected = model(**speech).logits
        with pytest.raises(NotImplementedError):
            model(**speech, logits_to_keep=torch.tensor([0]))
        assert torch.equal(model(**speech).logits, expected)


# The pooled forward.


@pytest.mark.parametrize("positions", ["keep", "compact"])
@pytest.mark.parametrize(
    "sites",
    [*SITES.values(), [Site(1, 0.6, 2), DEEP, Site(3, 0.5, 4)], [Site(1, keep=0.9), DEEP, Site(3, keep=0.5)]],
    ids=[*SITES, "three", "three-kept"],
)
def test_pooled_prefill_equals_a_forward_that_pools_with_the_reference(sites, positions):
    model = speech_model("eager")
    for row in (SPEECH[0], prompt("ab", 21, "c", 13, "defg", seed=6)):
        with patch(model, sites, positions=positions):
            logits = model(**row, use_cache=False).logits[0]
        assert logits.shape[0] < row["input_ids"].shape[1]
        # the hand-written forward passes no mask, which only sdpa takes as causal
        torch.testing.assert_close(logits, pooled_forward(speech_model("sdpa"), row, sites, positions)[0], **CLOSE)


@pytest.mark.parametrize("positions", ["keep", "compact"])
@pytest.mark.parametrize("sites", SITES.values(), ids=SITES)
def test_a_batch_gives_the_tokens_of_each_row_alone(any_model, speech, sites, positions):
    with patch(any_model, sites, positions=positions):
        together = tokens(any_model, speech)
        for row, alone in zip(together, SPEECH, strict=True):
            assert torch.equal(row, tokens(any_model, alone)[0])


def test_a_batch_with_a_row_of_text_alone_gives_the_tokens_of_each_row(model, dual):
    rows = [SPEECH[0], prompt(30 * "a", seed=7), SPEECH[2]]
    with patch(model, dual):
        together = steps(model, batch(rows))
        for row, alone in zip(together, rows, strict=True):
            torch.testing.assert_close(row, steps(model, alone)[0], **CLOSE)


def test_a_batch_whose_longest_row_merges_nothing_keeps_its_width_and_pools_the_others(model, dual):
    rows = [prompt(60 * "a", seed=8), SPEECH[0]]
    with patch(model, dual) as handle:
        assert model(**batch(rows)).logits.shape[1] == 60
        assert handle.stats.sites[0].audio_after[1] < handle.stats.sites[0].audio_before[1]
        for row, alone in zip(steps(model, batch(rows)), rows, strict=True):
            torch.testing.assert_close(row, steps(model, alone)[0], **CLOSE)


@pytest.mark.parametrize("site", [Site(0, -1.0, 1), Site(0, keep=1e-3)], ids=["threshold", "keep"])
def test_several_clips_in_one_prompt_never_share_a_group(model, site):
    two = prompt("ab", 12, "c", 12, "de", seed=9)
    with patch(model, [site]) as handle:
        model(**two)
    (site,) = handle.stats.sites
    assert site.audio_before == [24]
    assert site.audio_after == [2]
    assert site.counts[0][site.counts[0] > 0].tolist() == [1, 1, 12, 1, 12, 1, 1]


@pytest.mark.parametrize("positions", ["keep", "compact"])
@pytest.mark.parametrize("sites", SITES.values(), ids=SITES)
def test_cache_and_no_cache_agree(any_model, speech, sites, positions):
    with patch(any_model, sites, positions=positions):
        cached = steps(any_model, speech)
        torch.testing.assert_close(cached, steps(any_model, speech, use_cache=False), **CLOSE)


def test_pooling_changes_the_logits(model, speech):
    """Else every equality in this file would hold for a patch that does nothing."""
    plain = steps(model, speech)
    for sites in SITES.values():
        with patch(model, sites):
            assert (steps(model, speech) - plain).abs().max() > 0.1


def test_flash_attention_gets_a_two_dimensional_mask_or_none_and_gives_the_same_tokens(speech):
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    seen = []

    def attend(module, query, key, value, attention_mask, scaling=None, **kwargs):
        """What a flash kernel does with a padding mask, told to sdpa."""
        queries, keys = query.shape[2], key.shape[2]
        if (positions := kwargs.get("position_ids")) is not None:
            assert (positions.diff() <= 1).all()  # a real kernel takes a gap for the seam of two packed sequences
        visible = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)[None, None]
        if attention_mask is not None and attention_mask.dim() == 2:
            seen.append(attention_mask.shape[1] - keys)
            visible = visible & attention_mask[:, None, None, :].bool()
        repeat = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
        if not getattr(module, "is_causal", True):
            visible = attention_mask
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scaling)
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register("flash_stand_in", attend)
    AttentionMaskInterface.register("flash_stand_in", lambda *args, attention_mask=None, **kwargs: attention_mask)
    plain, flash = speech_model("sdpa"), speech_model("eager")
    learnt = batch(SPEECH, "right")
    asked = (learnt["input_ids"] != AUDIO) & (learnt["attention_mask"] > 0)
    learnt["labels"] = learnt["input_ids"].where(asked, -100)
    flash_config = qwen2(flash).config
    before = flash_config._attn_implementation
    with patch(plain, DUAL):
        expected, alone = tokens(plain, speech), tokens(plain, SPEECH[0])
        expected_loss = plain(**learnt).loss
    try:
        flash_config._attn_implementation = "flash_stand_in"
        with patch(flash, DUAL):
            assert torch.equal(tokens(flash, speech), expected)
            assert seen
            assert set(seen) == {0}
            assert torch.equal(tokens(flash, SPEECH[0]), alone)
            loss = flash(**learnt).loss
    finally:
        flash_config._attn_implementation = before
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-5)


# The cache.


def test_the_cache_is_shorter_exactly_from_the_site_on(model, speech):
    width = speech["input_ids"].shape[1]
    with patch(model, [DEEP]) as handle:
        lengths = kv_lengths(model(**speech).past_key_values)
        deep = max(handle.stats.sites[0].tokens_after)
        assert deep < width
        assert lengths == [width] * DEEP.layer + [deep] * (LAYERS - DEEP.layer)
    with patch(model, DUAL) as handle:
        lengths = kv_lengths(model(**speech).past_key_values)
        entering, deep = (max(site.tokens_after) for site in handle.stats.sites)
        assert deep < entering < width
        assert lengths == [entering] * DEEP.layer + [deep] * (LAYERS - DEEP.layer)


def test_kv_bytes_are_those_of_the_cache(model, speech):
    def size(cache: Any) -> int:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)

    unpooled = size(model(**speech).past_key_values)
    for sites in ([INPUT], [DEEP], DUAL):
        with patch(model, sites) as handle:
            pooled = size(model(**speech).past_key_values)
            assert (handle.stats.kv_bytes, handle.stats.kv_bytes_saved) == (pooled, unpooled - pooled)


def test_the_cache_counts_the_callers_tokens(model, speech, dual):
    with patch(model, dual):
        cache = model(**speech).past_key_values
        assert cache.get_seq_length() == speech["input_ids"].shape[1]
        model(input_ids=torch.full((3, 2), 20), past_key_values=cache)
        assert cache.get_seq_length() == speech["input_ids"].shape[1] + 2


@pytest.mark.parametrize("positions", ["keep", "compact"])
@pytest.mark.parametrize("sites", SITES.values(), ids=SITES)
@pytest.mark.parametrize("attention", ["plain", "proportional"])
@pytest.mark.parametrize("lengths", [(4, 4, 4), (1, 4, 3)], ids=["even-turn", "padded-turn"])
def test_a_second_turn_on_the_returned_cache_equals_a_fresh_prefill(
    any_model, speech, sites, positions, lengths, attention
):
    turn = torch.arange(40, 44).expand(3, -1)
    mask = (torch.arange(4) >= 4 - torch.tensor(lengths)[:, None]).long()  # a shorter turn is padded in the middle
    with patch(any_model, sites, positions=positions, attention=attention):
        first = any_model.generate(**speech, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
        answer = first.sequences[:, speech["input_ids"].shape[1] :]
        conversation = {
            "input_ids": torch.cat([first.sequences, turn * mask], 1),
            "attention_mask": torch.cat([speech["attention_mask"], torch.ones_like(answer), mask], 1),
        }
        continued = steps(any_model, conversation | {"past_key_values": first.past_key_values})
        fresh = [
            row | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            for row, said, asked, length in zip(SPEECH, answer, turn, lengths, strict=True)
            for ids in [torch.cat([row["input_ids"][0], said, asked[4 - length :]])[None]]
        ]
        torch.testing.assert_close(continued, steps(any_model, batch(fresh)), **CLOSE)


def test_feeding_tokens_one_by_one_equals_feeding_them_at_once(any_model, speech, dual):
    ids = torch.arange(30, 33).expand(3, -1)
    with patch(any_model, dual):
        mask = torch.cat([speech["attention_mask"], torch.ones_like(ids)], 1)
        at_once = any_model(
            input_ids=ids, attention_mask=mask, past_key_values=any_model(**speech).past_key_values
        ).logits
        cache = any_model(**speech).past_key_values
        for step in range(3):
            upto = speech["attention_mask"].shape[1] + step + 1
            one = any_model(input_ids=ids[:, step : step + 1], attention_mask=mask[:, :upto], past_key_values=cache)
            torch.testing.assert_close(one.logits[:, 0], at_once[:, step], **CLOSE)


def test_positional_arguments_are_understood(model, dual):
    row = SPEECH[0]
    with patch(model, dual):
        expected = model(**row).logits
        given = model(row["input_ids"], row["input_features"], row["attention_mask"], row["feature_attention_mask"])
        assert torch.equal(given.logits, expected)


def test_a_cache_passed_in_empty_is_pooled_in_place(model, speech, dual):
    cache = DynamicCache()
    with patch(model, dual):
        expected = model(**speech).past_key_values
        assert model(**speech, past_key_values=cache).past_key_values is cache
        assert kv_lengths(cache) == kv_lengths(expected)
        cache.reset()
        assert type(cache) is DynamicCache
        assert cache.get_seq_length() == 0
        model(**speech, past_key_values=cache)
        assert kv_lengths(cache) == kv_lengths(expected)
