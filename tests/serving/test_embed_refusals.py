"""What ``embed`` refuses, in words and before any work."""

from __future__ import annotations

import copy
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

sys.path.append(str(Path(__file__).parents[1] / "models"))

from kimi_like import conversation, kimi
from random_speech import AUDIO, DEEP, INPUT, SPEECH, speech_model

from affinity_pool import patch
from affinity_pool.models import FAMILIES, Family
from affinity_pool.models.families import UNFIT, language_model
from affinity_pool.serving import embed


@pytest.fixture
def model() -> Any:
    return speech_model()


class DataParallel(nn.Module):
    """Refused by its name."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


@pytest.fixture
def untouched(model):
    """A model whose forward is not to be called."""
    hook = model.register_forward_pre_hook(lambda *_: pytest.fail("the model was called"))
    yield model
    hook.remove()


def test_an_attention_that_engines_do_not_have_is_refused(untouched, tmp_path):
    content = '{"sites": [{"layer": 0, "keep": 0.5}], "attention": "proportional"}'
    (tmp_path / "affinity_pool.json").write_text(content)
    with pytest.raises(ValueError, match=r"asks for attention='proportional'.*write 'plain', or pass a list of Site"):
        embed(untouched, SPEECH[0], tmp_path)


def test_plain_attention_in_a_file_is_what_engines_have(model, tmp_path):
    (tmp_path / "affinity_pool.json").write_text('{"sites": [{"layer": 0, "keep": 0.5}], "attention": "plain"}')
    assert embed(model, SPEECH[0], tmp_path)[0].audio_after == [15]


@pytest.mark.parametrize(
    ("sites", "kind", "words"),
    [
        ([DEEP], ValueError, r"sites must be exactly one Site, at layer 0 \(the input site\), got \[Site\(layer=2"),
        ([INPUT, DEEP], ValueError, r"sites must be exactly one Site.*deeper layers run in the engine"),
        ("aggressive", ValueError, r"sites must be exactly one Site, at layer 0"),
        ([INPUT, INPUT], ValueError, r"two sites at one layer"),
        ([], ValueError, r"sites is empty"),
        (INPUT, TypeError, r"sites must be a preset, a list of Site or a path"),
        ([0.8], TypeError, r"sites must hold affinity_pool.Site objects"),
        ("nowhere", FileNotFoundError, r"sites='nowhere' is neither"),
    ],
)
def test_sites_that_are_not_one_at_the_input_are_refused(untouched, sites, kind, words):
    with pytest.raises(kind, match=words):
        embed(untouched, SPEECH[0], sites)


@pytest.mark.parametrize(
    ("inputs", "kind", "words"),
    [
        ([SPEECH[0]], TypeError, r"inputs must be a mapping, what the processor returned, got list"),
        ({}, ValueError, r"inputs must hold input_ids, a \[batch, tokens\] tensor .*got NoneType"),
        (SPEECH[0] | {"input_ids": [[1, 2]]}, ValueError, r"inputs must hold input_ids.*return_tensors='pt'.*got list"),
        (SPEECH[0] | {"input_ids": torch.arange(3)}, ValueError, r"input_ids.*got a tensor of shape \[3\]"),
        (
            SPEECH[0] | {"attention_mask": torch.ones(1, 3)},
            ValueError,
            r"attention_mask must be a tensor of shape \[1, 39\], as input_ids, got a tensor of shape \[1, 3\]",
        ),
        (
            {key: SPEECH[0][key] for key in ("input_ids", "attention_mask")},
            ValueError,
            rf"inputs has audio placeholders in input_ids \(id {AUDIO}\) but no input_features",
        ),
    ],
)
def test_inputs_that_are_not_a_prompt_are_refused(untouched, inputs, kind, words):
    with pytest.raises(kind, match=words):
        embed(untouched, inputs, [INPUT])


def test_a_patched_model_is_refused(untouched):
    with patch(untouched, [INPUT]), pytest.raises(RuntimeError, match=r"this model is patched.*pooled twice.*remove"):
        embed(untouched, SPEECH[0], [INPUT])


def test_a_model_in_what_cannot_be_seen_through_is_refused(model):
    with pytest.raises(NotImplementedError, match=r"a model inside DataParallel"):
        embed(DataParallel(model), SPEECH[0], [INPUT])
    with pytest.raises(TypeError, match=r"model must be a transformers model"):
        embed(nn.Linear(2, 2), SPEECH[0], [INPUT])


def test_kimi_audio_has_no_placeholders():
    with pytest.raises(NotImplementedError, match=r"Kimi-Audio marks audio by is_continuous_mask, not by an id"):
        embed(kimi(), conversation(), [INPUT])


@pytest.mark.parametrize("kind", UNFIT)
def test_families_that_cannot_be_pooled_are_refused_with_the_reason(kind):
    class Model(nn.Module):
        config = transformers.PretrainedConfig()

    Model.config.model_type = kind
    with pytest.raises(NotImplementedError, match=re.escape(f"(model_type '{kind}') cannot be pooled: {UNFIT[kind]}")):
        embed(Model(), SPEECH[0], [INPUT])


def test_a_model_that_expands_placeholders_itself_is_refused(model):
    def longer(decoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, kwargs | {"inputs_embeds": kwargs["inputs_embeds"].repeat(1, 2, 1)}

    hook = language_model(model).register_forward_pre_hook(longer, with_kwargs=True)
    try:
        with pytest.raises(NotImplementedError, match=r"input_ids have 39 tokens but the decoder got 78"):
            embed(model, SPEECH[0], [INPUT])
    finally:
        hook.remove()


def test_a_decoder_that_never_runs_is_told(model, monkeypatch):
    other = copy.deepcopy(language_model(model))
    monkeypatch.setitem(FAMILIES, "qwen2_audio", Family(decoder=lambda model: other))
    with pytest.raises(RuntimeError, match=r"returned without having called its decoder: family.decoder"):
        embed(model, SPEECH[0], [INPUT])
