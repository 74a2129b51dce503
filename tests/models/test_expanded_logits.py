"""Logits at the caller's columns, and batches that are padded on the right."""

from __future__ import annotations

import copy

import pytest
import torch
from labels import EITHER, answers
from random_families import random_model, random_rows
from random_speech import AUDIO, CLOSE, DUAL, INPUT, SITES, SPEECH, batch, embedded, prompt, speech_model, tokens
from transformers.trainer_pt_utils import LabelSmoother

from affinity_pool.models import Site, patch

pytestmark = pytest.mark.usefixtures("no_gradients")


# Logits at the caller's columns.


@EITHER
@pytest.mark.parametrize("sites", SITES.values(), ids=SITES)
def test_expanded_logits_are_those_of_the_column_each_went_to(any_model, side, sites):
    inputs = batch(SPEECH, side)
    with patch(any_model, sites, logits="expanded"):
        expanded = any_model(**inputs).logits
    assert expanded.shape[:2] == inputs["input_ids"].shape
    for row, alone, mask in zip(expanded, SPEECH, inputs["attention_mask"].bool(), strict=True):
        with patch(any_model, sites) as handle:
            pooled = any_model(**alone).logits[0]
            went = torch.arange(alone["input_ids"].shape[1])
            for site in handle.stats.sites:
                ids = site.segment_ids[0]
                went = (ids - (len(ids) - site.tokens_after[0]))[went].long()
        torch.testing.assert_close(row[mask], pooled[went], **CLOSE)


@EITHER
def test_a_loss_outside_of_the_model_is_the_one_inside(model, side):
    inputs = batch(SPEECH, side)
    wanted = answers(inputs)
    with patch(model, DUAL, logits="expanded"):
        inside = model(**inputs, labels=wanted)
        smoothed = LabelSmoother(epsilon=0.0)(model(**inputs), wanted, shift_labels=True)
        in_a_tuple = model(**inputs, labels=wanted, return_dict=False)
    torch.testing.assert_close(smoothed, inside.loss)
    assert torch.equal(in_a_tuple[1], inside.logits)


@pytest.mark.parametrize("kept", [1, 5, 30])
def test_expanded_logits_of_the_last_columns(kept):
    model, rows = random_model("VoxtralForConditionalGeneration"), random_rows("VoxtralForConditionalGeneration")
    inputs = batch(rows)
    with patch(model, [Site(0, keep=0.3), Site(2, keep=0.5)], logits="expanded"):
        whole = model(**inputs).logits
        torch.testing.assert_close(model(**inputs, logits_to_keep=kept).logits, whole[:, -kept:])


def test_logits_of_the_last_columns_that_cannot_be_told():
    model, rows = random_model("VoxtralForConditionalGeneration"), random_rows("VoxtralForConditionalGeneration")
    inputs = batch(rows, "right")
    with patch(model, [Site(0, keep=0.3)]), pytest.raises(NotImplementedError, match="logits_to_keep=4 of a batch"):
        model(**inputs, labels=answers(inputs)[:, -4:], logits_to_keep=4)
    dropping = [Site(0, reduction=Site(0, 0.9).reduce)]
    with patch(model, dropping, logits="expanded"), pytest.raises(NotImplementedError, match="reduction of one's own"):
        model(**batch(rows), logits_to_keep=4)


def test_generation_is_the_same_with_expanded_logits(model, speech):
    with patch(model, DUAL):
        expected = tokens(model, speech)
    with patch(model, DUAL, logits="expanded"):
        assert torch.equal(tokens(model, speech), expected)


def test_logits_must_be_one_of_two(model):
    with pytest.raises(ValueError, match="logits must be 'pooled' or 'expanded', got 'all'"):
        patch(model, DUAL, logits="all")


# Padding on the right.


def test_padding_on_the_right_is_for_forwards_that_nothing_is_generated_from():
    inputs, model = batch(SPEECH, "right"), copy.deepcopy(speech_model())
    on_the_left = pytest.raises(NotImplementedError, match=r"pad on the left.*on the right with labels")
    with patch(model, DUAL), on_the_left:
        model(**inputs)
    with patch(model, DUAL, logits="expanded"):
        expected = model(**inputs).logits
        with on_the_left:
            model.generate(**inputs, max_new_tokens=2)
    model.train()
    with patch(model, DUAL):
        assert model(**inputs).logits.shape[1] < expected.shape[1]
        with on_the_left:
            model.generate(**inputs, max_new_tokens=2)


@pytest.mark.parametrize("positions", ["keep", "compact"])
def test_a_cache_padded_on_the_right_goes_on(model, positions):
    inputs = batch(SPEECH, "right")
    wanted = answers(inputs)
    more, lengths = torch.tensor([[20], [21], [22]]), inputs["attention_mask"].sum(1, keepdim=True)
    with patch(model, DUAL, positions=positions):
        cache = model(**inputs, labels=wanted).past_key_values
        mask = torch.cat([inputs["attention_mask"], torch.ones(3, 1, dtype=torch.long)], 1)
        went_on = model(input_ids=more, attention_mask=mask, position_ids=lengths, past_key_values=cache).logits[:, 0]
        for row, alone, token in zip(went_on, SPEECH, more, strict=True):
            own = model(**alone).past_key_values
            torch.testing.assert_close(row, model(input_ids=token[None], past_key_values=own).logits[0, 0], **CLOSE)


def test_a_cache_padded_on_the_right_may_lose_later_tokens_alone(model):
    """Its last columns are padding in one row and text in another, and which row that is pooling has changed."""
    inputs = batch([prompt("abcdefghijklmnopqrst", seed=3), prompt("ab", 28, "cdefgh", seed=1)], "right")
    model = copy.deepcopy(model).train()
    with patch(model, [Site(0, keep=0.2)]):
        cache = model(**inputs).past_key_values
        mask = torch.cat([inputs["attention_mask"], torch.ones(2, 2, dtype=torch.long)], 1)
        at = inputs["attention_mask"].sum(1, keepdim=True) + torch.arange(2)
        more = torch.tensor([[20, 21], [22, 23]])
        options = {"input_ids": more, "attention_mask": mask, "position_ids": at, "past_key_values": cache}
        once = model(**options).logits
        cache.crop(cache.get_seq_length() - 2)
        assert torch.equal(model(**options).logits, once)
        with pytest.raises(NotImplementedError, match="cannot crop 4 tokens"):
            cache.crop(cache.get_seq_length() - 4)


@EITHER
def test_audio_at_the_end_of_a_short_row(side):
    """What fills the row up is no audio, and a share of the next site is of none of it."""
    model, sites = speech_model(), [Site(0, 0.7, 1), Site(2, keep=0.5)]
    rows = [SPEECH[0], prompt("ab", 9, seed=5), prompt("abc", 13, "d", 12, seed=6)]
    inputs = batch(rows, side)
    with patch(model, sites, logits="expanded") as handle:
        model(**inputs)
        together = [site.audio_after for site in handle.stats.sites]
        alone = []
        for row in rows:
            model(**row)
            alone.append([site.audio_after[0] for site in handle.stats.sites])
    assert together == [list(left) for left in zip(*alone, strict=True)]


def test_placeholders_under_a_mask_are_no_audio(model):
    inputs = batch(SPEECH)
    inputs["input_ids"][1:, :3] = AUDIO  # padding, whatever its ids are
    with patch(model, [Site(0, keep=0.5)]) as handle, pytest.raises(ValueError, match="do not match"):
        model(**inputs)
    given = embedded(model, batch(SPEECH)) | {"audio_positions": inputs["input_ids"] == AUDIO}
    with patch(model, [Site(0, keep=0.5)]) as handle:
        model(**given)
        assert handle.stats.sites[0].audio_before == [30, 17, 8]


def test_input_site_alone_is_enough(model):
    """The mask that a head reads is exchanged where there is one site too."""
    inputs = batch(SPEECH, "right")
    with patch(model, [INPUT]):
        assert model(**inputs, labels=answers(inputs)).loss.isfinite()
