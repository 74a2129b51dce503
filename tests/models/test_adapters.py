"""peft's adapters on a patched model: put on before the patch or after it, trained, saved, loaded and merged."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from random_speech import DUAL, KEPT, labelled
from torch import Tensor, nn
from trainer_runs import PROMPTS, assert_same_weights, by_hand, lora, model_to_train, trainer

from affinity_pool.models import patch

pytestmark = pytest.mark.usefixtures("learning", "fresh_accelerator")


@pytest.fixture
def own_model() -> Any:
    return model_to_train()


def patched_then_adapted(model: Any) -> Any:
    patch(model, DUAL)
    return lora(model)


def adapted_then_patched(model: Any) -> Any:
    wrapped = lora(model)
    patch(wrapped, DUAL)
    return wrapped


ORDERS = pytest.mark.parametrize("adapted", [patched_then_adapted, adapted_then_patched])


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def test_adapters_learn_the_same_in_either_order(own_model):
    found = []
    for adapted in (patched_then_adapted, adapted_then_patched):
        model = adapted(copy.deepcopy(own_model)).train()
        loss = model(**labelled(PROMPTS[:3])).loss
        loss.backward()
        found.append((loss, gradients_of(model)))
    torch.testing.assert_close(*found, rtol=0, atol=0)
    assert len(found[0][1]) == 4 * 3 * 2
    # and the same as the weights they stand for
    merged = lora(own_model).merge_and_unload()
    with patch(merged, DUAL):
        torch.testing.assert_close(merged.train()(**labelled(PROMPTS[:3])).loss, found[0][0], rtol=1e-4, atol=1e-4)


@ORDERS
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_the_trainer_trains_adapters(own_model, tmp_path, adapted, reentrant):
    expected = adapted(copy.deepcopy(own_model))
    by_hand(expected)
    model = adapted(own_model)
    run = trainer(
        model, tmp_path, gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": reentrant}
    )
    run.train()
    assert_same_weights(model, expected)
    run.save_model(str(tmp_path / "end"))
    assert {path.name for path in (tmp_path / "end").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}


@ORDERS
def test_adapters_are_saved_loaded_and_merged_under_the_patch(own_model, tmp_path, adapted):
    import peft

    inputs = labelled(PROMPTS[:3])
    plain = copy.deepcopy(own_model).eval()
    with patch(plain, DUAL):
        without = plain(**inputs)
    model = adapted(own_model).eval()
    found = model(**inputs)
    assert not torch.allclose(found.loss, without.loss, rtol=1e-2)

    with model.disable_adapter():
        torch.testing.assert_close(model(**inputs).logits, without.logits)
    torch.testing.assert_close(model(**inputs).logits, found.logits, rtol=0, atol=0)

    model.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (said.get("auto_mapping") or {}).get("base_model_class") in (None, "Qwen2AudioForConditionalGeneration")
    with patch(plain, DUAL):
        loaded = peft.PeftModel.from_pretrained(plain, tmp_path).eval()
        torch.testing.assert_close(loaded(**inputs).logits, found.logits)
        loaded.load_adapter(tmp_path, "again")
        loaded.set_adapter("again")
        torch.testing.assert_close(loaded(**inputs).logits, found.logits)
        bare = loaded.merge_and_unload()
        assert bare is plain
        torch.testing.assert_close(bare(**inputs).logits, found.logits, rtol=1e-3, atol=1e-3)
        assert bare(**inputs).logits.shape[1] < inputs["input_ids"].shape[1]
    assert plain(**inputs).logits.shape[1] == inputs["input_ids"].shape[1]


def test_adapters_of_transformers_itself_come_and_go_under_the_patch(own_model):
    peft = pytest.importorskip("peft", reason="peft is not installed here")
    inputs = labelled(PROMPTS[:3])
    with patch(own_model.eval(), KEPT):
        without = own_model(**inputs).logits
        try:
            own_model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        except ValueError as error:  # before it has done anything
            pytest.skip(str(error))
        own_model.eval()
        found = own_model(**inputs).logits
        assert not torch.allclose(found, without, rtol=1e-2)
        own_model.disable_adapters()
        torch.testing.assert_close(own_model(**inputs).logits, without)
        own_model.enable_adapters()
        torch.testing.assert_close(own_model(**inputs).logits, found, rtol=0, atol=0)
        own_model(**inputs).loss.backward()
        assert len(gradients_of(own_model)) == len([n for n, _ in own_model.named_parameters() if "lora" in n])
