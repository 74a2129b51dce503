"""A call with labels: the model's own loss over the columns that are left, and logits at the caller's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from by_hand import pooled_losses
from labels import EITHER, UNTOLD, answers, asked
from random_families import CASES, random_model, random_rows, sites_that_merge_half
from random_speech import AUDIO, DUAL, IDLE, SITES, SPEECH, batch, embedded, prompt, speech_model
from torch import Tensor

from affinity_pool import PooledPadded
from affinity_pool.models import Site, patch
from affinity_pool.models.families import language_model

pytestmark = pytest.mark.usefixtures("no_gradients")


def padding_too(inputs: dict[str, Tensor]) -> Tensor:
    """Labels that most losses count, and mean nothing."""
    return inputs["input_ids"].masked_fill(inputs["input_ids"] == AUDIO, UNTOLD)


@EITHER
@pytest.mark.parametrize("sites", IDLE.values(), ids=IDLE)
@pytest.mark.parametrize("labels", [asked, answers, padding_too])
def test_where_nothing_merges_the_loss_is_the_unpatched_one_bit_for_bit(any_model, side, sites, labels):
    inputs = batch(SPEECH, side)
    wanted = labels(inputs)
    out = any_model(**inputs, labels=wanted)
    with patch(any_model, sites):
        pooled = any_model(**inputs, labels=wanted)
    assert torch.equal(pooled.loss, out.loss)
    assert torch.equal(pooled.logits, out.logits)


@EITHER
@pytest.mark.parametrize("positions", ["keep", "compact"])
@pytest.mark.parametrize("sites", SITES.values(), ids=SITES)
def test_the_loss_of_a_batch_is_that_of_its_rows_pooled_by_hand(any_model, side, positions, sites):
    inputs = batch(SPEECH, side)
    # Padding on the left predicts a row's first token, of nothing: such a label is not learnt from, but counted.
    wanted = answers(inputs)
    with patch(any_model, sites, positions=positions) as handle:
        loss = any_model(**inputs, labels=wanted).loss
        assert all(site.audio_kept < 1 for site in handle.stats.sites)
    by_hand = pooled_losses(speech_model("sdpa"), SPEECH, [answers(row)[0] for row in SPEECH], sites, positions)
    torch.testing.assert_close(loss, by_hand.mean(), rtol=1e-5, atol=1e-5)


def test_a_prompt_of_several_clips_without_a_mask():
    model = speech_model()
    row = prompt("ab", 21, "c", 13, "defg", seed=6)
    del row["attention_mask"]
    wanted = row["input_ids"].masked_fill(row["input_ids"] == AUDIO, UNTOLD)
    with patch(model, DUAL):
        loss = model(**row, labels=wanted).loss
    torch.testing.assert_close(loss, pooled_losses(model, [row], [wanted[0]], DUAL).mean(), rtol=1e-5, atol=1e-5)


@EITHER
def test_rows_do_not_feel_the_other_side(side):
    """Padded on either side a batch has the same losses, and leaves as many tokens."""
    model = speech_model()
    figures = []
    for way in (side, "left" if side == "right" else "right"):
        inputs = batch(SPEECH, way)
        with patch(model, DUAL, attention="proportional") as handle:
            loss = model(**inputs, labels=answers(inputs)).loss
            figures.append((loss, [(site.tokens_after, site.audio_after) for site in handle.stats.sites]))
    torch.testing.assert_close(figures[0][0], figures[1][0], rtol=1e-5, atol=1e-5)
    assert figures[0][1:] == figures[1][1:]


def test_the_callers_tensors_stay_as_they_are(model):
    inputs = batch(SPEECH, "right")
    wanted = answers(inputs)
    before = {name: value.clone() for name, value in (inputs | {"labels": wanted}).items()}
    with patch(model, DUAL):
        out = model(**inputs, labels=wanted)
    assert all(torch.equal(value, before[name]) for name, value in (inputs | {"labels": wanted}).items())
    assert out.attention_mask.shape == wanted.shape  # of this family's output


def test_labels_by_position_in_a_tuple_and_with_a_mask_of_bools(model):
    inputs = batch(SPEECH)
    wanted = answers(inputs)
    with patch(model, DUAL):
        loss = model(**inputs, labels=wanted).loss
        features, heard = inputs["input_features"], inputs["feature_attention_mask"]
        mask = inputs["attention_mask"].bool()
        given = model(inputs["input_ids"], features, mask, heard, None, None, None, wanted, return_dict=False)
    assert torch.equal(given[0], loss)


def test_prompts_of_text_alone_have_the_unpatched_loss(model):
    inputs = batch([prompt("abcdefgh", seed=4), prompt("abc", seed=5)], "right")
    loss = model(**inputs, labels=asked(inputs)).loss
    with patch(model, DUAL):
        assert torch.equal(model(**inputs, labels=asked(inputs)).loss, loss)


@EITHER
def test_embeddings_made_beforehand(model, side):
    inputs = batch(SPEECH, side)
    given = embedded(model, inputs) | {"audio_positions": inputs["input_ids"] == AUDIO}
    with patch(model, DUAL):
        assert torch.equal(model(**given, labels=answers(inputs)).loss, model(**inputs, labels=answers(inputs)).loss)


@EITHER
def test_columns_that_a_reduction_drops_leave_the_labels_of_the_others(model, side):
    """Every second audio token is dropped; each that stays is passed on as it is."""

    def drop(x: Tensor, lengths: Tensor | None, audio: Tensor) -> PooledPadded:
        width, rows = x.shape[1], range(x.shape[0])
        begins = [0 if lengths is None else width - int(lengths[row]) for row in rows]
        kept = [[at for at in range(begins[row], width) if not (audio[row, at] and at % 2)] for row in rows]
        values, ids, counts = torch.zeros_like(x), torch.full((len(kept), width), -1), torch.zeros(len(kept), width)
        for row, left in enumerate(kept):
            values[row, width - len(left) :] = x[row, left]
            ids[row, left] = torch.arange(width - len(left), width)
            counts[row, width - len(left) :] = 1
        lefts = torch.tensor([len(left) for left in kept], dtype=torch.int32)
        return PooledPadded(values, lefts, ids.int(), counts.int())

    inputs = batch(SPEECH, side)
    wanted = answers(inputs)
    with patch(model, [Site(2, reduction=drop)]) as handle:
        out = model(**inputs, labels=wanted)
        assert handle.stats.sites[0].audio_kept < 0.6
    with patch(model, [Site(2, reduction=drop)], logits="expanded"):
        expanded = model(**inputs, labels=wanted)
    assert torch.equal(out.loss, expanded.loss)
    outside = F.cross_entropy(expanded.logits[:, :-1].flatten(0, 1), wanted[:, 1:].flatten(), ignore_index=UNTOLD)
    torch.testing.assert_close(outside, out.loss, rtol=1e-5, atol=1e-5)


# What is wrong with labels.


def test_a_label_on_an_audio_token_is_refused(model, dual):
    inputs = batch(SPEECH)
    with patch(model, dual), pytest.raises(ValueError, match=r"labels\[0, 3\] is a label on an audio token.*-100"):
        model(**inputs, labels=inputs["input_ids"])


def test_a_label_in_padding_is_refused_where_it_would_be_lost(model, dual):
    inputs = batch(SPEECH)
    wanted = inputs["input_ids"].masked_fill(inputs["input_ids"] == AUDIO, UNTOLD)
    with patch(model, dual), pytest.raises(ValueError, match=r"labels\[1, 0\] is a label in padding"):
        model(**inputs, labels=wanted)


@pytest.mark.parametrize("labels", [torch.zeros(3, 7, dtype=torch.long), torch.zeros(39, dtype=torch.long), [[1, 2]]])
def test_labels_of_another_shape_are_refused(model, dual, labels):
    with patch(model, dual), pytest.raises(ValueError, match=r"labels must have shape \[3, 39\], one for each token"):
        model(**batch(SPEECH), labels=labels)


def test_padding_on_both_sides_is_refused_in_training_too(model, dual):
    inputs = batch(SPEECH)
    inputs["attention_mask"][2, -1] = 0
    with patch(model, dual), pytest.raises(NotImplementedError, match="padding on both sides"):
        model(**inputs, labels=torch.full_like(inputs["input_ids"], UNTOLD))


def test_rows_padded_on_different_sides_are_refused(model, dual):
    inputs = batch(SPEECH)
    inputs["attention_mask"][2] = inputs["attention_mask"][2].flip(0)
    with patch(model, dual), pytest.raises(NotImplementedError, match="pad on the left"):
        model(**inputs, labels=torch.full_like(inputs["input_ids"], UNTOLD))


def test_prompts_packed_into_one_row_are_refused(model, dual):
    row = prompt("ab", 21, "c", 13, "defg", seed=6)
    del row["attention_mask"]
    again = torch.cat([torch.arange(23), torch.arange(18)])[None]
    packed = pytest.raises(NotImplementedError, match="packed into one row")
    with patch(model, dual):
        with packed:
            model(**row, position_ids=again, use_cache=False)
        with packed:
            model(**row, cu_seq_lens_q=torch.tensor([0, 23, 41], dtype=torch.int32))
        one = model(**row, position_ids=torch.arange(41)[None], use_cache=False).logits
        assert torch.equal(one, model(**row).logits)
        model(**row, position_ids=again)  # with a cache transformers takes it for one prompt, and so does the patch


def test_prompts_packed_by_positions_of_four_axes_are_refused():
    name = "Qwen2_5OmniThinkerForConditionalGeneration"
    model, row = random_model(name), dict(random_rows(name)[0])
    del row["attention_mask"]
    width = row["input_ids"].shape[1]
    again = torch.cat([torch.arange(20), torch.arange(width - 20)]).expand(4, 1, width)
    with patch(model, [Site(2, keep=0.5)]), pytest.raises(NotImplementedError, match="packed into one row"):
        model(**row, position_ids=again, use_cache=False)


# Every family's own loss.


@pytest.fixture(params=["Qwen2AudioForConditionalGeneration", *CASES])
def family(request: pytest.FixtureRequest) -> tuple[Any, list[dict[str, Tensor]]]:
    if request.param not in CASES:
        return speech_model(), SPEECH
    return random_model(request.param), random_rows(request.param)


@EITHER
def test_each_family_has_its_own_loss_where_nothing_merges(family, side):
    model, rows = family
    inputs = batch(rows, side)
    out = model(**inputs, labels=asked(inputs))
    with patch(model, [Site(0, 1.5), Site(2, keep=1.0)]):
        pooled = model(**inputs, labels=asked(inputs))
    assert torch.equal(pooled.loss, out.loss)


@EITHER
@pytest.mark.parametrize("positions", ["keep", "compact"])
def test_each_family_learns_from_the_columns_that_are_left(family, side, positions):
    """Each label is what the last column before it says, of those that are left."""
    model, rows = family
    inputs = batch(rows, side)
    wanted = answers(inputs)
    with patch(model, sites_that_merge_half(model, batch(rows), positions), positions=positions) as handle:
        loss = model(**inputs, labels=wanted).loss
        assert all(site.audio_kept < 0.75 for site in handle.stats.sites)
        alone = []
        for row in rows:
            logits, told = model(**row).logits[0], answers(row)[0]
            last = told[told != UNTOLD]
            alone.append(F.cross_entropy(logits[-len(last) - 1 : -1].float(), last, reduction="none"))
    torch.testing.assert_close(loss, torch.cat(alone).mean(), rtol=2e-3, atol=2e-3)


def test_items_are_counted_over_more_than_this_batch():
    """As the Trainer does it over the batches that it accumulates."""
    model, rows = random_model("VoxtralForConditionalGeneration"), random_rows("VoxtralForConditionalGeneration")
    inputs = batch(rows, "right")
    wanted = answers(inputs)
    with patch(model, [Site(0, keep=0.6)]):
        loss = model(**inputs, labels=wanted).loss
        counted = model(**inputs, labels=wanted, num_items_in_batch=torch.tensor(50)).loss
    torch.testing.assert_close(counted, loss * (wanted != UNTOLD).sum() / 50)


@EITHER
def test_labels_that_are_shifted_already(side):
    model, rows = random_model("VoxtralForConditionalGeneration"), random_rows("VoxtralForConditionalGeneration")
    inputs = batch(rows, side)
    wanted = answers(inputs)
    shifted = F.pad(wanted, (0, 1), value=UNTOLD)[:, 1:]
    with patch(model, [Site(0, keep=0.6)]):
        loss = model(**inputs, labels=wanted).loss
        assert torch.equal(model(**inputs, labels=wanted, shift_labels=shifted).loss, loss)
        shifted[0, 5] = 7  # what comes after an audio token, and before another
        with pytest.raises(ValueError, match="label on an audio token"):
            model(**inputs, labels=wanted, shift_labels=shifted)


@pytest.mark.parametrize("kept", [4, 12, 100])
@pytest.mark.parametrize("sites", [[Site(0, 1.5)], [Site(0, keep=0.3), Site(2, keep=0.5)]], ids=["idle", "merging"])
def test_logits_of_the_last_columns_and_their_labels(kept, sites):
    model, rows = random_model("VoxtralForConditionalGeneration"), random_rows("VoxtralForConditionalGeneration")
    inputs = batch(rows)
    wanted = asked(inputs)[:, -kept:]
    whole = asked(inputs).clone()
    whole[:, : -kept + 1] = UNTOLD  # the first of those that are kept is predicted by none of them
    out = model(**inputs, labels=wanted, logits_to_keep=kept)
    with patch(model, sites) as handle:
        pooled = model(**inputs, labels=wanted, logits_to_keep=kept)
        assert pooled.logits.shape[1] == min(kept, max(handle.stats.sites[-1].tokens_after))
        torch.testing.assert_close(pooled.loss, model(**inputs, labels=whole).loss)
    if sites[0].threshold:
        assert torch.equal(pooled.loss, out.loss)


@pytest.mark.parametrize("name", ["Qwen2AudioForConditionalGeneration", "VoxtralForConditionalGeneration"])
def test_a_row_s_first_token_is_learnt_from_on_neither_side(name):
    """Padding before it would predict it, and how much of that is left depends on the other rows."""
    model = random_model(name) if name in CASES else speech_model()
    rows = random_rows(name) if name in CASES else SPEECH
    losses = []
    with patch(model, [Site(0, keep=0.2)]):
        for inputs in (batch(rows), batch(rows, "right")):
            losses.append(model(**inputs, labels=asked(inputs)).loss)
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)


def test_a_row_alone_may_have_labels_of_its_last_columns():
    model, row = random_model("VoxtralForConditionalGeneration"), random_rows("VoxtralForConditionalGeneration")[0]
    with patch(model, [Site(0, keep=0.3)]):
        loss = model(**row, labels=asked(row)[:, -4:], logits_to_keep=4).loss
        whole = asked(row)
        whole[:, :-3] = UNTOLD
        torch.testing.assert_close(loss, model(**row, labels=whole).loss)


@EITHER
def test_another_number_may_say_what_is_not_learnt(side):
    model, rows = random_model("VoxtralForConditionalGeneration"), random_rows("VoxtralForConditionalGeneration")
    inputs = batch(rows, side)
    wanted = answers(inputs)
    with patch(model, [Site(0, keep=0.3)]):
        loss = model(**inputs, labels=wanted).loss
        other = wanted.masked_fill(wanted == UNTOLD, -1)
        assert torch.equal(model(**inputs, labels=other, ignore_index=-1).loss, loss)


def test_shifted_labels_alone_compute_no_loss_and_leave_the_logits_first_in_a_tuple():
    model, rows = random_model("VoxtralForConditionalGeneration"), random_rows("VoxtralForConditionalGeneration")
    inputs = batch(rows)
    shifted = F.pad(answers(inputs), (0, 1), value=UNTOLD)[:, 1:]
    with patch(model, [Site(0, keep=0.3)], logits="expanded"):
        expected = model(**inputs).logits
        assert torch.equal(model(**inputs, shift_labels=shifted, return_dict=False)[0], expected)


@EITHER
def test_what_a_head_reads_is_exchanged_while_it_runs_and_no_longer(model, side):
    """Of a batch whose longest row is text the width stays, and what is in the columns changes."""
    rows = [prompt(52 * "a", seed=3), SPEECH[0]]
    inputs = batch(rows, side)
    seen: list[Tensor] = []
    handed: list[Tensor] = []

    def look(module: Any, args: Any, kwargs: Any) -> None:
        handed.append(kwargs["attention_mask"])

    hook = language_model(model).register_forward_pre_hook(look, with_kwargs=True)
    head = model.get_output_embeddings().register_forward_pre_hook(lambda *_: seen.append(handed[-1].clone()))
    with patch(model, [Site(0, keep=0.2)]) as handle:
        out = model(**inputs, labels=answers(inputs))
        left = handle.stats.sites[0].tokens_after
    hook.remove()
    head.remove()
    assert seen[0].sum(1).tolist() == left
    assert set(seen[0].unique().tolist()) == {0, 1}
    assert left[1] < 39
    assert torch.equal(out.attention_mask, inputs["attention_mask"])


def test_shifted_labels_may_go_on_in_the_next_chunk():
    """The last of them says what comes after the last column, which no label of the call does."""
    model, row = random_model("VoxtralForConditionalGeneration"), random_rows("VoxtralForConditionalGeneration")[0]
    wanted = asked(row)
    shifted = torch.cat([wanted[:, 1:], torch.tensor([[17]])], 1)
    with patch(model, [Site(0, keep=0.3)]):
        loss = model(**row, labels=wanted, shift_labels=shifted).loss
        logits = model(**row).logits
        by_hand = F.cross_entropy(logits[0, -5:], shifted[0, -5:])  # the last of the audio, and the text after it
    kept = shifted[0][shifted[0] != UNTOLD]
    assert len(kept) > 5
    with patch(model, [Site(0, keep=0.3)]):
        masked = shifted.clone()
        masked[:, :-5] = UNTOLD
        torch.testing.assert_close(model(**row, labels=wanted, shift_labels=masked).loss, by_hand)
    assert not torch.allclose(loss, by_hand)


def test_the_label_of_the_first_column_that_has_logits_is_not_learnt():
    """Nor is one on audio refused there: it was never compared with anything."""
    model, row = random_model("VoxtralForConditionalGeneration"), random_rows("VoxtralForConditionalGeneration")[0]
    after = int((row["input_ids"] == AUDIO).flip(1).int().argmax())  # text tokens after the audio
    labels = row["input_ids"][:, -after - 1 :].clone()
    assert labels[0, 0] == AUDIO
    whole = asked(row)
    whole[:, :-after] = UNTOLD
    with patch(model, [Site(0, keep=0.3)]):
        loss = model(**row, labels=labels, logits_to_keep=after + 1).loss
        torch.testing.assert_close(loss, model(**row, labels=whole).loss)
