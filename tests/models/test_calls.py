"""A call's state is its own: calls end in errors or Ctrl-C, start inside each other, and run in several threads."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from random_speech import DEEP, DUAL, SPEECH, batch, prompt, tokens

from affinity_pool.models import patch
from affinity_pool.models.families import audio_tower, language_model


class Interrupted:
    """Ctrl-C in the forward of a module, once."""

    def __init__(self, module: torch.nn.Module, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.error = error
        self.hook = module.register_forward_pre_hook(self)

    def __call__(self, *_: Any) -> None:
        self.hook.remove()
        raise self.error


def places(model: Any) -> dict[str, torch.nn.Module]:
    layers = language_model(model).layers
    return {
        "encoder": audio_tower(model),
        "first": layers[0],
        "after the deep site": layers[DEEP.layer].mlp,
        "last": layers[-1],
    }


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError])
@pytest.mark.parametrize("place", ["encoder", "first", "after the deep site", "last"])
def test_a_call_that_died_leaves_nothing_behind(model, speech, place, error, dual):
    with patch(model, dual) as handle:
        expected, said = model(**speech).logits, tokens(model, speech)
        stats = handle.stats
        Interrupted(places(model)[place], error)
        with pytest.raises(error):
            model(**speech)
        assert not handle.running
        assert handle.stats.sites[0].tokens_after == stats.sites[0].tokens_after
        assert torch.equal(model(**speech).logits, expected)
        assert torch.equal(tokens(model, speech), said)


def test_decoding_that_died_leaves_nothing_behind(model, speech):
    with patch(model, DUAL):
        expected = tokens(model, speech)
        cache = model(**speech).past_key_values
        Interrupted(language_model(model).layers[-1])
        with pytest.raises(KeyboardInterrupt):
            model(input_ids=torch.full((3, 1), 20), past_key_values=cache)
        assert torch.equal(tokens(model, speech), expected)


def side_by_side(*work: Any) -> list[Any]:
    """Results of functions that each run in a thread of their own, at the same time."""
    found: list[Any] = [None] * len(work)
    barrier = threading.Barrier(len(work))

    def run(index: int) -> None:
        barrier.wait()
        try:
            with torch.inference_mode():
                found[index] = work[index]()
        except BaseException as error:
            found[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("positions", ["keep", "compact"])
def test_calls_from_several_threads_each_give_what_they_give_alone(model, positions, dual):
    text = {"input_ids": torch.arange(20, 30)[None], "attention_mask": torch.ones(1, 10, dtype=torch.long)}
    inputs = [SPEECH[0], batch(SPEECH[1:]), SPEECH[2], text]
    with patch(model, dual, positions=positions):
        alone = [tokens(model, one) for one in inputs]
        for _ in range(3):
            together = side_by_side(*(lambda one=one: tokens(model, one) for one in inputs))
            for one, other in zip(together, alone, strict=True):
                assert torch.equal(one, other)


def test_a_call_that_fails_in_one_thread_does_not_touch_the_one_in_another(model, speech):
    inside, go = threading.Event(), threading.Event()

    def slow(*_: Any) -> None:
        if not inside.is_set():
            inside.set()
            go.wait(10)

    def second() -> Any:
        inside.wait(10)
        try:
            return model(**speech, logits_to_keep=torch.tensor([0]))
        finally:
            go.set()

    with patch(model, DUAL):
        expected = model(**speech).logits
        hook = audio_tower(model).register_forward_pre_hook(slow)
        try:
            first, refused = side_by_side(lambda: model(**speech).logits, second)
        finally:
            hook.remove()
        assert torch.equal(first, expected)
        assert isinstance(refused, NotImplementedError)


def test_a_prefill_and_decoding_run_side_by_side(model, speech):
    with patch(model, DUAL):
        ids = torch.arange(30, 33)[:, None]
        expected = model(input_ids=ids, past_key_values=model(**speech).past_key_values).logits
        width = model(**SPEECH[0]).logits.shape[1]
        cache = model(**speech).past_key_values
        decoded, prefilled = side_by_side(
            lambda: model(input_ids=ids, past_key_values=cache).logits, lambda: model(**SPEECH[0]).logits
        )
        assert torch.equal(decoded, expected)
        assert prefilled.shape[1] == width


def test_a_forward_inside_a_forward_is_a_call_of_its_own(model, speech):
    seen = []

    def inner(*_: Any) -> None:
        if not seen:
            seen.append(None)
            seen[0] = model(**SPEECH[0]).logits

    for place in ("encoder", "after the deep site"):
        with patch(model, DUAL):
            expected, alone = model(**speech).logits, model(**SPEECH[0]).logits
            seen.clear()
            hook = places(model)[place].register_forward_pre_hook(inner)
            try:
                assert torch.equal(model(**speech).logits, expected)
            finally:
                hook.remove()
            assert torch.equal(seen[0], alone)


def test_the_forward_method_called_directly_pools_too(model, speech):
    """As peft's adapters call it."""
    with patch(model, DUAL):
        assert torch.equal(model.forward(**speech).logits, model(**speech).logits)


def test_a_decoder_called_around_the_model_with_embeddings_is_refused(model, speech):
    decoder = language_model(model)
    embeddings = torch.zeros(1, 4, 64)
    with patch(model, DUAL):
        with pytest.raises(RuntimeError, match=r"around the model: .*Call the Qwen2AudioForConditionalGeneration"):
            decoder(inputs_embeds=embeddings)
        decoder(input_ids=speech["input_ids"][:, -4:])  # text for certain
    decoder(inputs_embeds=embeddings)


def test_layers_exchanged_after_patching_are_noticed(model):
    layers = language_model(model).layers
    kept = list(layers)
    with patch(model, DUAL):
        for index, layer in enumerate(copy.deepcopy(list(layers))):
            layers[index] = layer
        try:
            with pytest.raises(RuntimeError, match="ended without passing layer 0, layer 1, layer 2 as patched"):
                model(**SPEECH[0])
        finally:
            for index, layer in enumerate(kept):
                layers[index] = layer
        assert model(**SPEECH[0]).logits.shape[1] < SPEECH[0]["input_ids"].shape[1]


def test_one_layer_exchanged_between_sites_is_noticed(model):
    layers = language_model(model).layers
    kept, rows = layers[1], [prompt(60 * "a", seed=8), SPEECH[0]]  # the longest row keeps its width
    with patch(model, [DUAL[0]]):
        layers[1] = copy.deepcopy(kept)
        try:
            with pytest.raises(RuntimeError, match="ended without passing layer 1 as patched"):
                model(**batch(rows))
        finally:
            layers[1] = kept


def test_positional_arguments_are_understood_whatever_stands_around_forward(model):
    row = SPEECH[0]
    own = model.forward
    model.forward = lambda *args, **kwargs: own(*args, **kwargs)
    try:
        with patch(model, DUAL):
            given = model(row["input_ids"], row["input_features"], row["attention_mask"], row["feature_attention_mask"])
            assert given.logits.shape[1] < row["input_ids"].shape[1]
    finally:
        del model.forward
