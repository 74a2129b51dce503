"""Whisper's ``generate()`` on pooled memory, in all its modes; judged by a Whisper whose encoder pools by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from random_encoder_decoders import (
    BOTH,
    EN,
    FRAMES,
    KEPT,
    NO_TIMESTAMPS,
    SITE,
    SOT,
    features,
    pooled_by_hand,
    random_model,
    row,
    speech,
)

from affinity_pool.models import Site, patch

SOME = Site("memory", threshold=0.92, window=1)
ENGLISH = {"language": "en", "task": "transcribe"}


def heard(model, inputs, **options):
    return model.generate(**inputs, **({"max_new_tokens": 12, "do_sample": False} | options))


def by_hand(model, inputs, site, attention, **options):
    """What :func:`heard` is to say: of a batch only if merged tokens weigh, for then rows keep their lengths."""
    with pooled_by_hand(model, site, attention):
        return heard(model, inputs, **options)


def same(found, wanted):
    """Tokens, or what a dictionary of them holds: the ids, their times, segments."""
    if isinstance(wanted, torch.Tensor):
        if wanted.is_floating_point():
            torch.testing.assert_close(found, wanted, atol=0.021, rtol=0)  # a frame, where two of them weigh the same
        else:
            assert torch.equal(found, wanted)
    elif isinstance(wanted, dict):
        for name in wanted.keys() & {"sequences", "segments", "token_timestamps", "tokens", "start", "end"}:
            same(found[name], wanted[name])
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            same(one, other)


MODES = {
    "greedy": ENGLISH,
    "beams": ENGLISH | {"num_beams": 3},
    "several": ENGLISH | {"num_beams": 3, "num_return_sequences": 2},
    "timestamps": ENGLISH | {"return_timestamps": True},
    "language": {"task": "transcribe"},
    "translation": {"language": "de", "task": "translate", "return_timestamps": True, "num_beams": 2},
    "prompt": ENGLISH | {"prompt_ids": torch.tensor([46, 7, 8, 9])},
    "no-cache": ENGLISH | {"use_cache": False},
}


@BOTH
@pytest.mark.parametrize("options", MODES.values(), ids=MODES.keys())
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_recording_is_heard_as_if_pooled_by_hand(implementation, options, attention):
    model = random_model(attention=implementation)
    for index in range(3):
        inputs = row(speech(), index)
        with patch(model, [SOME], attention=attention) as handle:
            found = heard(model, inputs, **options)
            assert handle.stats.sites[0].audio_kept < 0.6
        same(found, by_hand(model, inputs, SOME, attention, **options))


@pytest.mark.parametrize("options", MODES.values(), ids=MODES.keys())
def test_a_batch_is_heard_as_if_pooled_by_hand(options):
    """Rows are left with different lengths, and transformers passes no mask to cross-attention."""
    model = random_model()
    with patch(model, [SOME], attention="proportional") as handle:
        found = heard(model, speech(), **options)
        assert len(set(handle.stats.sites[0].tokens_after)) > 1
    same(found, by_hand(model, speech(), SOME, "proportional", **options))


@BOTH
def test_rows_of_a_batch_are_heard_as_if_alone(attention):
    model = random_model()
    with patch(model, [SOME], attention=attention):
        for options in (MODES["greedy"], MODES["beams"]):
            together = heard(model, speech(), **options)
            for index in range(3):
                alone = heard(model, row(speech(), index), **options)[0]
                assert torch.equal(together[index, : len(alone)], alone)


def test_weights_and_pooling_show_in_what_is_heard():
    """Else none of the other tests could fail."""
    model = random_model()
    said = [heard(model, speech(), **ENGLISH)]
    for attention in ("plain", "proportional"):
        with patch(model, [SITE], attention=attention):
            said.append(heard(model, speech(), **ENGLISH))
    assert not torch.equal(said[0], said[1])
    assert not torch.equal(said[1], said[2])


def test_thresholds_above_one_change_nothing():
    model = random_model()
    for options in MODES.values():
        before = heard(model, speech(), **options)
        with patch(model, [Site("memory", threshold=1.5, window=1)], attention="proportional"):
            same(heard(model, speech(), **options), before)


@BOTH
def test_sampling_with_one_seed_draws_the_same_tokens(attention):
    model = random_model()
    inputs = row(speech(), 0)
    options = ENGLISH | {"do_sample": True, "temperature": 0.8}
    torch.manual_seed(5)
    with patch(model, [SOME], attention=attention):
        found = heard(model, inputs, **options)
    torch.manual_seed(5)
    assert torch.equal(found, by_hand(model, inputs, SOME, attention, **options))


@pytest.mark.parametrize("beams", [1, 3])
def test_token_timestamps(beams):
    """They are read from cross-attention: a merged token's weight is spread over what merged."""
    model = random_model(attention="eager")
    options = ENGLISH | {"return_token_timestamps": True, "num_beams": beams}
    inputs = speech() | {"attention_mask": torch.ones(3, FRAMES).long()}
    unpooled = heard(model, inputs, **options)
    with patch(model, [SOME], attention="proportional"):
        found = heard(model, inputs, **options)
    wanted = by_hand(model, inputs, SOME, "proportional", **options)
    assert found["token_timestamps"].shape == wanted["token_timestamps"].shape
    same(found, wanted)
    with patch(model, [Site("memory", threshold=1.5, window=1)]):
        assert torch.equal(heard(model, inputs, **options)["token_timestamps"], unpooled["token_timestamps"])
    with patch(model, [SOME]):
        times = heard(model, inputs, **options)["token_timestamps"]
    assert bool((times <= FRAMES / 100).all())
    assert bool((times >= 0).all())


@BOTH
@pytest.mark.parametrize("previous", [False, True], ids=["afresh", "with-previous-text"])
def test_long_form_goes_window_by_window(previous, attention):
    model = random_model()
    long = torch.cat([features(seed) for seed in (3, 4, 5)], 1)[None]
    options = ENGLISH | {
        "return_timestamps": True,
        "return_segments": True,
        "condition_on_prev_tokens": previous,
        "attention_mask": torch.ones(1, 3 * FRAMES).long(),
        "max_new_tokens": 8,
    }
    with patch(model, [SOME], attention=attention):
        found = heard(model, {"input_features": long}, **options)
    same(found, by_hand(model, {"input_features": long}, SOME, attention, **options))
    assert len(found["segments"][0]) > 1


def test_long_form_of_a_batch_that_ends_at_different_times():
    model = random_model()
    long = torch.stack([torch.cat([features(seed) for seed in range(first, first + 3)], 1) for first in (3, 6)])
    mask = torch.ones(2, 3 * FRAMES).long()
    mask[1, FRAMES:] = 0
    options = ENGLISH | {
        "return_timestamps": True,
        "return_segments": True,
        "attention_mask": mask,
        "max_new_tokens": 8,
        "temperature": (0.0, 0.4),
        "logprob_threshold": -1.0,
        "compression_ratio_threshold": 1.35,
    }
    torch.manual_seed(0)
    with patch(model, [SOME], attention="proportional"):
        found = heard(model, {"input_features": long}, **options)
    torch.manual_seed(0)
    same(found, by_hand(model, {"input_features": long}, SOME, "proportional", **options))


@BOTH
@pytest.mark.parametrize("shared", [True, False], ids=["one-encoder", "two-encoders"])
def test_assisted_decoding_gives_the_greedy_tokens(shared, attention):
    model, assistant = random_model(), copy.deepcopy(random_model())
    if shared:
        assistant.model.encoder = model.model.encoder
    with torch.no_grad():
        assistant.proj_out.weight.add_(0.02)  # agrees with the model now and then
    inputs = row(speech(), 0)
    with patch(model, [SOME], attention=attention):
        greedy = heard(model, inputs, **ENGLISH)
        assert torch.equal(heard(model, inputs, assistant_model=assistant, **ENGLISH), greedy)


def test_a_patched_assistant_gives_the_greedy_tokens():
    model, assistant = random_model(), copy.deepcopy(random_model())
    inputs = row(speech(), 0)
    greedy = heard(model, inputs, **ENGLISH)
    with patch(assistant, [KEPT], attention="proportional"):
        assert torch.equal(heard(model, inputs, assistant_model=assistant, **ENGLISH), greedy)
        with patch(model, [KEPT], attention="proportional"):
            both = heard(model, inputs, assistant_model=assistant, **ENGLISH)
    assert torch.equal(both, by_hand(model, inputs, KEPT, "proportional", **ENGLISH))


def test_a_forced_beginning_of_the_answer():
    model = random_model()
    inputs = row(speech(), 0) | {"decoder_input_ids": torch.tensor([[SOT, EN, 44, NO_TIMESTAMPS, 5]])}
    with patch(model, [SOME], attention="proportional"):
        found = heard(model, inputs)
    assert torch.equal(found, by_hand(model, inputs, SOME, "proportional"))


def test_bfloat16_generates():
    model = random_model(dtype=torch.bfloat16)
    inputs = {"input_features": speech()["input_features"].bfloat16()}
    with patch(model, [KEPT], attention="proportional") as handle:
        assert heard(model, inputs, num_beams=2, **ENGLISH).shape[0] == 3
        assert handle.stats.sites[0].tokens_after == [24] * 6


def test_a_static_cache_is_refused():
    model = random_model()
    with patch(model, [SOME]), pytest.raises(NotImplementedError, match="Leave cache_implementation out"):
        heard(model, speech(), cache_implementation="static", **ENGLISH)
