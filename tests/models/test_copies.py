"""Copies and pickles of a patched model come out unpatched, those of its caches pooled, and lost handles are found."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from random_speech import DUAL, SPEECH, speech_model
from torch import nn
from torch.optim.swa_utils import AveragedModel

import affinity_pool
from affinity_pool.models import patch, unpatch
from affinity_pool.models.families import language_model


def saved_and_loaded(thing: Any) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "torch.save": saved_and_loaded,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "old pickle": lambda thing: pickle.loads(pickle.dumps(thing, protocol=1)),
}
each_way = pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)


def traces(model: nn.Module) -> list[str]:
    """What there is of a patch in a model."""
    return [
        name
        for name, module in model.named_modules()
        if module._forward_pre_hooks or module._forward_pre_hooks_with_kwargs or "forward" in vars(module)
    ]


@pytest.fixture
def own_model() -> Any:
    with torch.inference_mode(False):
        return copy.deepcopy(speech_model())


@each_way
@pytest.mark.parametrize("positions", ["keep", "compact"])
def test_a_copy_is_unpatched_and_can_be_patched(own_model, speech, copied, positions):
    plain = own_model(**speech).logits
    with patch(own_model, DUAL, positions=positions):
        pooled = own_model(**speech).logits
        twin = copied(own_model)
        assert type(twin) is type(speech_model())
        assert not traces(twin)
        assert torch.equal(twin(**speech).logits, plain)
        with patch(twin, DUAL, positions=positions) as handle:
            assert torch.equal(twin(**speech).logits, pooled)
            assert handle.stats is not None
        assert torch.equal(own_model(**speech).logits, pooled)
    assert torch.equal(twin(**speech).logits, plain)


@each_way
def test_copies_of_parts_are_unpatched(own_model, copied):
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lm = own_model

    with patch(own_model, DUAL):
        for part in (
            language_model(own_model),
            language_model(own_model).layers[0],
            Holder() if copied is copy.deepcopy else own_model,
        ):
            assert not traces(copied(part))
            assert "PatchedModule" not in [kind.__name__ for kind in type(copied(part)).__mro__]


def test_hooks_of_others_are_copied(own_model):
    layer = language_model(own_model).layers[0]
    with patch(own_model, DUAL):
        layer.register_forward_pre_hook(print)
        assert list(copy.deepcopy(layer)._forward_pre_hooks.values()) == [print]
    assert list(layer._forward_pre_hooks.values()) == [print]


def test_a_pickle_needs_no_affinity_pool_to_load(own_model, tmp_path):
    with patch(own_model, DUAL):
        torch.save(own_model, tmp_path / "model.pt")
    program = f"""
import sys, torch
sys.modules["affinity_pool"] = None
torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_averaged_weights_of_a_patched_model_are_those_of_an_unpatched_one(own_model, speech):
    plain = own_model(**speech).logits
    with torch.inference_mode(False), patch(own_model, DUAL):
        average = AveragedModel(own_model)
        average.update_parameters(own_model)
    assert torch.equal(average(**speech).logits, plain)
    with patch(average, DUAL):
        assert average(**speech).logits.shape[1] < plain.shape[1]


def test_a_handle_cannot_be_copied(model):
    with patch(model, DUAL) as handle:
        for copied in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match=r"copy the model, which comes out unpatched"):
                copied(handle)


def test_a_lost_handle_can_be_released(model, speech):
    plain = model(**speech).logits
    patch(model, DUAL)
    gc.collect()
    assert model(**speech).logits.shape[1] < plain.shape[1]
    with pytest.raises(RuntimeError, match=r"patched already.*affinity_pool.unpatch\(model\)"):
        patch(model, DUAL)
    affinity_pool.unpatch(model)
    assert torch.equal(model(**speech).logits, plain)
    assert not traces(model)
    unpatch(model)  # without a patch nothing happens


def test_a_removed_patch_leaves_nothing_that_refers_to_it(own_model, speech):
    import weakref

    handle = weakref.ref(patch(own_model, DUAL))
    own_model(**speech)
    unpatch(own_model)
    gc.collect()
    assert handle() is None


@pytest.mark.parametrize("removed", [False, True])
def test_a_copy_is_of_its_own_weights_whatever_others_put_around_forward(own_model, speech, removed):
    from accelerate.hooks import ModelHook, add_hook_to_module

    handle = patch(own_model, DUAL)
    add_hook_to_module(own_model, ModelHook())
    if removed:
        handle.remove()
    twin = copy.deepcopy(own_model)
    with torch.no_grad():
        for weight in twin.parameters():
            weight.zero_()
    assert not twin(**speech).logits.any()
    assert own_model(**speech).logits.any()
    assert twin(**speech).logits.shape[1] == speech["input_ids"].shape[1]
    handle.remove()
    with patch(own_model, DUAL):  # again, with the old one still inside
        assert own_model(**speech).logits.shape[1] < speech["input_ids"].shape[1]


def test_models_made_of_a_patched_one_s_class_are_like_any_other(own_model, speech):
    with patch(own_model, DUAL):
        twin = type(own_model)(own_model.config).eval()
        width = twin(**speech).logits.shape[1]
        assert width == speech["input_ids"].shape[1]
        with patch(twin, DUAL):
            assert twin(**speech).logits.shape[1] <= width
        assert type(copy.deepcopy(twin)) is type(saved_and_loaded(twin)) is type(speech_model())


def test_classes_that_others_derive_stay(own_model, speech):
    """As fully_shard does."""
    handle = patch(own_model, DUAL)
    layer = language_model(own_model).layers[0]
    layer.__class__ = derived = type("Sharded", (type(layer),), {})
    pooled = own_model(**speech).logits
    handle.remove()
    assert type(layer) is derived
    with patch(own_model, DUAL):
        assert torch.equal(own_model(**speech).logits, pooled)
    assert type(layer) is derived


# The cache.


@each_way
@pytest.mark.parametrize("positions", ["keep", "compact"])
def test_a_copy_of_a_pooled_cache_continues_like_the_original(model, speech, copied, positions):
    ids = torch.arange(40, 42).expand(3, -1)
    with patch(model, DUAL, positions=positions):
        cache = model(**speech).past_key_values
        twin = copied(cache)
        expected = model(input_ids=ids, past_key_values=cache).logits
        assert torch.equal(model(input_ids=ids, past_key_values=twin).logits, expected)
        again = copied(twin)
    with patch(model, DUAL, positions=positions):
        assert model(input_ids=ids, past_key_values=again).logits.shape == expected.shape
    with pytest.raises(RuntimeError, match=r"pooled by affinity_pool.patch"):
        model(input_ids=ids, past_key_values=copied(twin))


def test_one_prompt_cache_serves_several_questions(model):
    row = SPEECH[0]
    questions = [torch.arange(40, 44)[None], torch.arange(60, 67)[None]]
    with patch(model, DUAL):
        prompt = saved_and_loaded(model(**row).past_key_values)
        for question in questions:
            expected = model(input_ids=question, past_key_values=model(**row).past_key_values).logits
            assert torch.equal(model(input_ids=question, past_key_values=copy.deepcopy(prompt)).logits, expected)
