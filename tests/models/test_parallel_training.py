"""Processes that share a patched model's training, and torch's own wrapper for activation checkpointing."""

from __future__ import annotations

import copy
import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import two_processes
from random_speech import DUAL, RANGES, SPEECH, batch, labelled, qwen2, speech_model, tokens
from torch import Tensor, distributed, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper, checkpoint_wrapper
from two_processes import CASES, PATCHES, ROWS, checkpoint, gradients

from affinity_pool.models import patch

pytestmark = pytest.mark.usefixtures("learning")


@pytest.fixture
def own_model() -> Any:
    return copy.deepcopy(speech_model()).train()


def halved(model: Any) -> Any:
    """A copy to compute with in bfloat16, whose buffers stay as they are: what fully_shard makes of parameters."""
    copied = copy.deepcopy(model)
    for weight in copied.parameters():
        weight.data = weight.data.bfloat16()
    return copied


WHAT_COUNTS = {*PATCHES, "lora", "shard in bfloat16"}
"""Steps that change what is found."""


class Alone:
    """One process that takes the same steps as two: gradients are the mean of what it finds on the rows of each."""

    def __init__(self, *steps: str) -> None:
        self.low = any("bfloat16" in step for step in steps)
        self.patch = next(PATCHES[step] for step in steps if step in PATCHES)
        self.model = copy.deepcopy(speech_model())
        if "lora" in steps:
            two_processes.lora(self.model)
        self.losses: list[list[Tensor]] = [[], []]
        self.audio: list[list[Any]] = [[], []]
        self.gradients = [self.step(0), self.step(1)]
        self.pooled, self.plain = [], []
        for rank in (0, 1):
            model, inputs = self.computing(rank)
            with torch.no_grad(), patch(model.eval(), **self.patch):
                self.pooled.append(model(**inputs).logits)
            with torch.no_grad():
                self.plain.append(model(**inputs).logits)

    def computing(self, rank: int) -> tuple[Any, dict[str, Tensor]]:
        inputs = labelled(ROWS[rank])
        if not self.low:
            return copy.deepcopy(self.model), inputs
        return halved(self.model), inputs | {"input_features": inputs["input_features"].bfloat16()}

    def step(self, number: int) -> dict[str, Tensor]:
        found = []
        for rank in (0, 1):
            model, inputs = self.computing(rank)
            torch.manual_seed(10 * number + rank)
            with patch(model.train(), **self.patch) as handle:
                loss = model(**inputs).loss
                loss.backward()
                self.audio[rank].append([site.audio_after for site in handle.stats.sites])
            self.losses[rank].append(loss.detach())
            found.append(gradients(model))
        mean = {name: (found[0][name].float() + found[1][name].float()) / 2 for name in found[0]}
        for name, weight in self.model.named_parameters():
            weight.grad = mean.get(name)
        two_processes.step(self.model)
        return mean


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], name: str) -> None:
    """As vectors: elements that nearly cancel have errors of their own."""
    assert found.keys() == expected.keys(), name
    for key, wanted in expected.items():
        error = (found[key].float() - wanted.float()).norm()
        assert error <= 1e-4 * wanted.float().norm() + 1e-6, f"{name}, {key}: off by {error} of {wanted.float().norm()}"


@pytest.mark.skipif(not distributed.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_learn_what_one_learns_from_both_their_rows(tmp_path):
    """All cases in one test: starting two processes takes longer than all that they do."""
    command = [sys.executable, "-W", "ignore", "-X", "faulthandler", str(Path(two_processes.__file__))]
    logs = [(tmp_path / f"{rank}.log").open("w+") for rank in (0, 1)]
    started = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], stdout=log, stderr=log) for rank, log in enumerate(logs)
    ]
    alone = functools.cache(Alone)
    try:
        expected = [alone(*sorted(step for step in steps if step in WHAT_COUNTS)) for steps in CASES]
        codes = [process.wait(timeout=300) for process in started]
        for log in logs:
            log.seek(0)
        assert codes == [0, 0], "\n".join(log.read() for log in logs)
    finally:
        for process in started:
            process.kill()
            process.wait()
        for log in logs:
            log.close()
    for number, (steps, one) in enumerate(zip(CASES, expected, strict=True)):
        name = " then ".join(steps)
        for rank in (0, 1):
            found = torch.load(tmp_path / f"{number}-{rank}.pt")
            assert found["audio"] == one.audio[rank], name
            logits = {"pooled": one.pooled[rank], "plain": one.plain[rank]}
            for at in (0, 1):
                assert_close({"loss": found["losses"][at]}, {"loss": one.losses[rank][at]}, name)
                assert_close(found["gradients"][at], one.gradients[at], f"{name}, step {at}")
            assert_close({key: found[key] for key in logits}, logits, name)
            assert logits["pooled"].shape[1] < logits["plain"].shape[1]
            assert_close(found["saved"], one.model.state_dict(), f"{name}, saved")


WRAPPED = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])


@WRAPPED
@pytest.mark.parametrize("sites", [DUAL, RANGES], ids=["numbers", "ranges"])
@pytest.mark.parametrize("first", [True, False], ids=["wrapped first", "patched first"])
def test_layers_in_torch_s_checkpoint_wrapper_are_pooled_once(own_model, sites, first, reentrant):
    plain, inputs = copy.deepcopy(own_model), labelled(SPEECH) | {"use_cache": False}
    before = plain.eval()(**inputs).logits
    plain.train()
    torch.manual_seed(1)
    with patch(plain, sites):
        plain(**inputs).loss.backward()
    if first:
        checkpoint(own_model, reentrant)
    handle = patch(own_model, sites)
    if not first:
        own_model(**inputs)  # a call before, in which there is nothing to follow
        checkpoint(own_model, reentrant)
    torch.manual_seed(1)
    loss = own_model(**inputs).loss
    run = handle.stats
    loss.backward()
    torch.testing.assert_close(gradients(own_model), gradients(plain), rtol=0, atol=0)
    assert handle.stats.sites[0].threshold == run.sites[0].threshold
    said = tokens(own_model.eval(), batch(SPEECH))
    with patch(plain.eval(), sites):
        assert torch.equal(said, tokens(plain, batch(SPEECH)))

    handle.remove()
    wrappers = qwen2(own_model).layers
    assert {type(wrapper) for wrapper in wrappers} == {CheckpointWrapper}
    assert {type(wrapper._checkpoint_wrapped_module) for wrapper in wrappers} == {type(qwen2(speech_model()).layers[0])}
    assert torch.equal(own_model(**inputs).logits, before)


def test_a_wrapper_around_one_layer_is_followed_and_copies_come_out_unpatched(own_model):
    inputs = labelled(SPEECH) | {"use_cache": False}
    plain = own_model(**inputs).logits
    layers = qwen2(own_model).layers
    with patch(own_model, DUAL) as handle:
        pooled = own_model(**inputs)
        layers[2] = checkpoint_wrapper(layers[2])
        again = own_model(**inputs)
        again.loss.backward()
        assert torch.equal(again.logits, pooled.logits)
        assert torch.equal(copy.deepcopy(own_model)(**inputs).logits, plain)
        assert handle.stats.sites[1].audio_after < handle.stats.sites[1].audio_before
    assert type(layers[2]) is CheckpointWrapper


@WRAPPED
def test_a_cache_that_the_backward_pass_would_fill_again_is_refused_in_words(own_model, reentrant):
    with patch(checkpoint(own_model, reentrant), DUAL):
        loss = own_model(**labelled(SPEECH), use_cache=True).loss
        with pytest.raises(RuntimeError, match=r"once more: call the model with use_cache=False"):
            loss.backward()


def test_a_layer_checkpointed_inside_its_own_call_is_refused_in_words(own_model):
    """What no hook can follow: the layer's forward itself runs again, or the model around it."""
    from torch.utils.checkpoint import checkpoint as run_again

    decoder: nn.Module = qwen2(own_model)
    forward = decoder.forward
    decoder.forward = lambda *args, **kwargs: run_again(forward, *args, use_reentrant=False, **kwargs)
    with patch(own_model, DUAL):
        loss = own_model(**labelled(SPEECH), use_cache=False).loss
        with pytest.raises(RuntimeError, match=r"run again in the backward pass, where what pooling made"):
            loss.backward()
