"""Models inside other modules are found, pooled and released; what cannot be seen through is refused by name."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from random_speech import DUAL, SPEECH, speech_model, tokens
from torch import nn

from affinity_pool.models import patch, unpatch
from affinity_pool.models.families import inner_model


@pytest.fixture
def own_model() -> Any:
    with torch.inference_mode(False):
        return copy.deepcopy(speech_model())


def lora(model: Any) -> Any:
    peft = pytest.importorskip("peft", reason="peft is not installed here")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    return peft.get_peft_model(model, config).eval()


def test_a_model_with_adapters_is_pooled_however_it_is_called(own_model):
    with torch.inference_mode(False):
        wrapped = lora(own_model)
    width = SPEECH[0]["input_ids"].shape[1]
    with patch(wrapped, DUAL) as handle:
        assert handle.model is own_model
        logits = wrapped(**SPEECH[0]).logits
        assert logits.shape[1] < width
        assert torch.equal(own_model(**SPEECH[0]).logits, logits)
        said = tokens(wrapped, SPEECH[0])
        assert torch.equal(said, tokens(wrapped, SPEECH[0], use_cache=False))
    assert wrapped(**SPEECH[0]).logits.shape[1] == width


def test_adapters_put_on_a_patched_model_keep_it_pooled(own_model):
    width = SPEECH[0]["input_ids"].shape[1]
    with patch(own_model, DUAL), torch.inference_mode(False):
        wrapped = lora(own_model)
        assert wrapped(**SPEECH[0]).logits.shape[1] < width


class PeftModel(nn.Module):
    """What the patch needs to know of peft's class of that name."""

    def __init__(self, model: Any, learns_prompts: bool = False) -> None:
        super().__init__()
        self.base_model = model
        self.active_peft_config = type("Config", (), {"is_prompt_learning": learns_prompts})()

    def get_base_model(self) -> Any:
        return self.base_model

    def forward(self, **inputs: Any) -> Any:
        return self.base_model.forward(**inputs)


class DistributedDataParallel(nn.Module):
    """Needs processes; what is inside is where torch's has it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, **inputs: Any) -> Any:
        return self.module(**inputs)


@pytest.mark.parametrize(
    "wrap",
    [PeftModel, DistributedDataParallel, lambda model: DistributedDataParallel(PeftModel(model))],
    ids=["adapters", "ddp", "both"],
)
def test_wrappers_are_seen_through(model, wrap):
    wrapped, plain = wrap(model), model(**SPEECH[0]).logits
    with patch(wrapped, DUAL):
        assert wrapped(**SPEECH[0]).logits.shape[1] < plain.shape[1]
        with pytest.raises(RuntimeError, match=r"patched already"):
            patch(wrapped, DUAL)
        with pytest.raises(RuntimeError, match=r"patched already"):
            patch(model, DUAL)
    patch(wrapped, DUAL)
    unpatch(wrapped)
    assert torch.equal(wrapped(**SPEECH[0]).logits, plain)


def test_the_real_wrapper_of_distributed_training_is_seen_through(own_model, tmp_path):
    from torch import distributed

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        with torch.inference_mode(False), torch.no_grad():
            wrapped = nn.parallel.DistributedDataParallel(own_model)
            with patch(wrapped, DUAL):
                assert wrapped(**SPEECH[0]).logits.shape[1] < SPEECH[0]["input_ids"].shape[1]
    finally:
        distributed.destroy_process_group()


def test_accelerate_s_hooks_before_or_after_stay_in_place(own_model):
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    plain = own_model(**SPEECH[0]).logits
    seen = []

    class Seen(ModelHook):
        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            seen.append(type(module).__name__)
            return args, kwargs

    add_hook_to_module(own_model, Seen())
    add_hook_to_module(inner_model(own_model).language_model, Seen())
    with patch(own_model, DUAL):
        pooled = own_model(**SPEECH[0]).logits
        assert pooled.shape[1] < plain.shape[1]
        assert len(seen) == 2
    assert torch.equal(own_model(**SPEECH[0]).logits, plain)
    assert len(seen) == 4
    remove_hook_from_module(own_model)
    handle = patch(own_model, DUAL)
    add_hook_to_module(own_model, Seen())
    assert torch.equal(own_model(**SPEECH[0]).logits, pooled)
    handle.remove()  # below accelerate's function, where it cannot be taken out: there it does nothing
    assert torch.equal(own_model(**SPEECH[0]).logits, plain)


def test_models_that_cannot_be_seen_through_are_refused_by_name(model):
    with pytest.raises(NotImplementedError, match=r"inside DataParallel cannot be patched.*DistributedDataParallel"):
        patch(nn.DataParallel(model), DUAL)
    with pytest.raises(NotImplementedError, match=r"PeftModel of virtual tokens cannot be patched"):
        patch(PeftModel(model, learns_prompts=True), DUAL)

    class Recogniser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lm = model

    with pytest.raises(TypeError, match=r"must be a transformers model, got Recogniser; patch its .lm"):
        patch(Recogniser(), DUAL)
    with pytest.raises(TypeError, match=r"must be a transformers model, got Linear$"):
        patch(nn.Linear(2, 2), DUAL)


@pytest.mark.skipif("4.5" in sys.modules["transformers"].__version__[:3], reason="the head holds no model of its own")
def test_a_model_and_the_one_inside_it_are_not_both_patched(model):
    inside = model.model
    with patch(model, DUAL), pytest.raises(RuntimeError, match=r"shares its decoder with one that is"):
        patch(inside, DUAL)
    with patch(inside, DUAL), pytest.raises(RuntimeError, match=r"shares its decoder with one that is"):
        patch(model, DUAL)
    patch(model, DUAL).remove()
