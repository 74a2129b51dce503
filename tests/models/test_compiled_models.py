"""torch.compile before and after patching: what was compiled without the patch is never taken for the patched model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from random_speech import SPEECH, speech_model

from affinity_pool.models import patch
from affinity_pool.models.families import language_model

EAGER = {"backend": "eager"}  # Dynamo's part is what matters here; backends see its graphs


def forward(model: Any) -> Any:
    model.forward = torch.compile(model.forward, **EAGER)
    return model


def in_place(model: Any) -> Any:
    model.compile(**EAGER)
    return model


def decoder(model: Any) -> Any:
    language_model(model).compile(**EAGER)
    return model


def layers(model: Any) -> Any:
    for layer in language_model(model).layers:
        layer.compile(**EAGER)
    return model


WAYS: dict[str, Callable[[Any], Any]] = {
    "torch.compile(model)": lambda model: torch.compile(model, **EAGER),
    "model.compile": in_place,
    "model.forward": forward,
    "decoder": decoder,
    "layers": layers,
}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("compiled", WAYS.values(), ids=WAYS)
def test_compiled_and_run_before_patching_and_after_removing(compiled, dual):
    row = SPEECH[0]
    with torch.inference_mode(False), torch.no_grad():
        model = copy.deepcopy(speech_model())
        plain = model(**row).logits
        call = compiled(model)
        assert torch.equal(call(**row).logits, plain)
        with patch(model, dual) as handle:
            pooled = call(**row).logits
            assert pooled.shape[1] < plain.shape[1]
            assert handle.stats.sites[0].tokens_after == [handle.stats.sites[1].tokens_before[0]]
        assert torch.equal(call(**row).logits, plain)


def test_patched_first_and_compiled_later_pools_and_decodes(dual):
    row = SPEECH[0]
    with torch.inference_mode(False), torch.no_grad():
        model = copy.deepcopy(speech_model())
        plain = model(**row).logits
        with patch(model, dual) as handle:
            expected = model(**row)
            next_token = {"input_ids": torch.tensor([[20]]), "past_key_values": expected.past_key_values}
            decoded = model(**next_token).logits
            call = torch.compile(model, **EAGER)
            out = call(**row)
            assert torch.equal(out.logits, expected.logits)
            assert handle.stats is not None
            again = call(**next_token | {"past_key_values": out.past_key_values}).logits
            torch.testing.assert_close(again, decoded, rtol=1e-5, atol=1e-5)
        assert torch.equal(call(**row).logits, plain)  # and the code with the patch is not run without it
        with patch(call, [dual[0]]) as other:
            assert call(**row).logits.shape[1] == other.stats.sites[0].tokens_after[0]
