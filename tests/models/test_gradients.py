"""Gradients of a pooled model: those of the loss by hand, the same under checkpointing, autocast and the compiler."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import random_encoder_decoders
import torch
import transformers
from by_hand import pooled_losses
from labels import answers
from random_families import CASES, random_model, random_rows
from random_speech import AUDIO, DUAL, KEPT, SITES, SPEECH, batch, embedded, speech_model, steps, tokens
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from affinity_pool import PooledPadded
from affinity_pool.models import Site, patch
from affinity_pool.models.families import inner_model, language_model

ROUNDED = {"eps": 1e-3, "atol": 2e-3, "rtol": 1e-2, "fast_mode": True}  # transformers normalises in float32
REENTRANT = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not-reentrant"])
CLOSE = {"rtol": 1e-3, "atol": 1e-4}  # float32 sums in other orders


pytestmark = pytest.mark.usefixtures("learning")


@pytest.fixture
def model() -> Any:
    return copy.deepcopy(speech_model()).train()


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def learnt(model: Any, inputs: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    return gradients(model, model(**inputs, labels=answers(inputs), **options).loss)


def assert_same(given: dict[str, Tensor], wanted: dict[str, Tensor], close: float = 0) -> None:
    assert given.keys() == wanted.keys()
    for name, grad in given.items():
        torch.testing.assert_close(grad, wanted[name], rtol=close, atol=close)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("sites", SITES.values(), ids=SITES)
@pytest.mark.parametrize("positions", ["keep", "compact"])
def test_gradients_are_those_of_autograd_through_the_reference(model, sites, positions, side):
    by_hand = pooled_losses(model, SPEECH, [answers(row)[0] for row in SPEECH], sites, positions)
    wanted = gradients(model, by_hand.mean())
    with patch(model, sites, positions=positions):
        given = learnt(model, batch(SPEECH, side))
    assert {"language_model" in name for name in given} == {True, False}  # the encoder's weights too
    for name, grad in given.items():
        torch.testing.assert_close(grad, wanted[name], **CLOSE)


def test_gradients_in_float64_are_those_of_finite_differences():
    """The op has no float64: pairs of audio tokens are merged by a reduction of one's own, through the same patch."""

    def pairs(x: Tensor, lengths: Tensor | None, audio: Tensor) -> PooledPadded:
        (begin, end) = audio[0].nonzero()[0].item(), audio[0].nonzero()[-1].item() + 1
        begin += (end - begin) % 2
        merged = x[:, begin:end].unflatten(1, (-1, 2)).mean(2)
        gone = merged.shape[1]
        values = torch.cat([x[:, :gone], x[:, :begin], merged, x[:, end:]], 1)
        counts = torch.ones(x.shape[1], dtype=torch.int32)
        counts[:gone], counts[gone + begin : begin + 2 * gone] = 0, 2
        ids = torch.repeat_interleave(torch.arange(x.shape[1]), counts).int()
        return PooledPadded(values, torch.tensor([x.shape[1] - gone], dtype=torch.int32), ids[None], counts[None])

    model = speech_model(dtype=torch.float64)
    row = {name: x.double() if x.is_floating_point() else x for name, x in SPEECH[2].items()}
    with torch.no_grad():
        given = embedded(model, row) | {"audio_positions": row["input_ids"] == AUDIO}
    wanted, embeds = answers(row), given.pop("inputs_embeds")

    def loss(embeds: Tensor) -> Tensor:
        return model(inputs_embeds=embeds, labels=wanted, **given).loss

    with patch(model, [Site(0, reduction=pairs), Site(2, reduction=pairs)]) as handle:
        assert torch.autograd.gradcheck(loss, embeds.requires_grad_(), **ROUNDED)
        assert handle.stats.sites[1].audio_after == [2]
    speech_model(dtype=torch.float64).zero_grad()


# Layers that run again in the backward pass.


@pytest.fixture(params=["Qwen2AudioForConditionalGeneration", *CASES])
def family(request: pytest.FixtureRequest) -> tuple[Any, list[dict[str, Tensor]]]:
    if request.param not in CASES:
        return copy.deepcopy(speech_model()).train(), SPEECH
    return copy.deepcopy(random_model(request.param)).train(), random_rows(request.param)


def without_dropout(model: Any) -> Any:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "activation_dropout", "layerdrop"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    for name in ("encoder_layerdrop", "decoder_layerdrop", "speech_encoder_layerdrop"):
        setattr(model.config, name, 0.0)
    return model


@REENTRANT
@pytest.mark.parametrize("sites", [DUAL, KEPT], ids=["thresholds", "shares"])
@pytest.mark.filterwarnings("ignore::FutureWarning")  # transformers 5.23 renames the method
def test_gradient_checkpointing_changes_no_gradient(family, sites, reentrant):
    model, rows = family
    if not model.supports_gradient_checkpointing:
        pytest.skip(f"{type(model).__name__} of transformers {transformers.__version__} has no gradient checkpointing")
    without_dropout(model)
    inputs = batch(rows, "right")
    if reentrant:
        model.enable_input_require_grads()
    with patch(model, sites) as handle:
        wanted = learnt(model, inputs)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        given = learnt(model, inputs)
        assert handle.stats.sites[0].audio_kept < 1
    assert_same(given, wanted)


@REENTRANT
@pytest.mark.parametrize("attention", ["plain", "proportional"])
@pytest.mark.parametrize("kind", ["whisper", "moonshine", "speech_to_text", "seamless_m4t_v2"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_gradient_checkpointing_of_a_decoder_that_attends_to_pooled_memory(kind, attention, reentrant):
    model = without_dropout(copy.deepcopy(random_encoder_decoders.random_model(kind)).train())
    inputs = {name: value.clone() for name, value in random_encoder_decoders.speech(kind).items()}
    wanted_ids = torch.arange(6)[None].repeat(3, 1)
    with patch(model, [Site("memory", keep=0.5)], attention=attention):
        wanted = gradients(model, model(**inputs, labels=wanted_ids).loss)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    try:
        gradients(model, model(**inputs, labels=wanted_ids).loss)
    except RuntimeError as error:
        pytest.skip(f"transformers {transformers.__version__} cannot, without the patch either: {str(error)[:60]}")
    with patch(model, [Site("memory", keep=0.5)], attention=attention):
        given = gradients(model, model(**inputs, labels=wanted_ids).loss)
    # Of encoder layers, too: their gradients are added up in another order, with the patch or without it.
    assert_same(given, wanted, close=1e-5)


@pytest.mark.parametrize("first", ["patch", "wrapper"])
def test_torchs_checkpoint_wrapper_around_layers(model, first):
    inputs = batch(SPEECH, "right")
    with patch(model, DUAL):
        wanted = learnt(model, inputs, use_cache=False)

    def wrap() -> None:
        layers = language_model(model).layers
        for index, layer in enumerate(layers):
            layers[index] = checkpoint_wrapper(layer)

    if first == "wrapper":
        wrap()
    with patch(model, DUAL) as handle:
        if first == "patch":
            wrap()
        given = learnt(model, inputs, use_cache=False)
        again = learnt(model, inputs, use_cache=False)
        with pytest.raises(RuntimeError, match="use_cache=False"):
            learnt(model, inputs)
        assert handle.stats.sites[0].audio_kept < 1
    plain = learnt(model, inputs, use_cache=False)
    named = {name.replace("_checkpoint_wrapped_module.", ""): grad for name, grad in given.items()}
    assert_same(named, wanted)
    assert_same(again, given)
    assert any(not torch.equal(grad, given[name]) for name, grad in plain.items())


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_layers_that_are_checkpointed_keep_no_keys(model):
    """Where they keep none, a cache is left as it was given: empty, and anyone's."""
    inputs = batch(SPEECH, "right")
    model.gradient_checkpointing_enable()
    for layer in language_model(model).layers[1:]:
        layer.gradient_checkpointing = False
    with patch(model, DUAL):
        wanted = learnt(model, inputs)
        cache = DynamicCache()
        assert_same(learnt(model, inputs, past_key_values=cache), wanted)
        assert type(cache) is DynamicCache
    whisper = copy.deepcopy(random_encoder_decoders.random_model("whisper")).train()
    whisper.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    heard = {name: value.clone() for name, value in random_encoder_decoders.speech("whisper").items()}
    with patch(whisper, [Site("memory", keep=0.5)]):
        whisper(**heard, labels=torch.arange(6)[None].repeat(3, 1), past_key_values=cache).loss.backward()
    assert type(cache) is EncoderDecoderCache


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("positions", ["keep", "compact"])
@pytest.mark.parametrize("training", [True, False])
def test_a_model_that_checkpoints_generates_the_same(model, positions, training):
    """Without gradients nothing is run again, and keys are kept; from transformers 5 on in training mode too."""
    inputs = batch(SPEECH)
    with patch(model, KEPT, positions=positions, attention="proportional"), torch.no_grad():
        expected = steps(model.eval(), inputs)
        model.gradient_checkpointing_enable()
        plain = tokens(model.train(training), SPEECH[0])
        if not torch.equal(plain, tokens(model.eval(), SPEECH[0])):
            pytest.skip(f"transformers {transformers.__version__} drops the cache of a model in training mode")
        assert torch.equal(steps(model.train(training), inputs), expected)


def test_layers_of_an_encoder_decoder_checkpointed_out_of_sight_are_refused():
    model = copy.deepcopy(random_encoder_decoders.random_model("whisper", "eager"))
    heard = {name: value.clone() for name, value in random_encoder_decoders.speech("whisper").items()}
    with patch(model, [Site("memory", keep=0.5)], attention="proportional"):
        checkpoint_out_of_sight(model.model.decoder.layers)
        loss = model(**heard, labels=torch.arange(6)[None].repeat(3, 1), use_cache=False).loss
        with pytest.raises(RuntimeError, match="run again in the backward pass"):
            loss.backward()


def checkpoint_out_of_sight(layers: Any) -> None:
    """As a library does it that takes over the class of each layer."""
    for layer in layers:
        kind = type(layer)

        def again(self: Any, *args: Any, kind: Any = kind, **kwargs: Any) -> Any:
            call = functools.partial(kind.__call__, self, **kwargs)
            return torch.utils.checkpoint.checkpoint(call, *args, use_reentrant=False)

        layer.__class__ = type(kind.__name__, (kind,), {"__call__": again})


def test_a_class_derived_from_a_patched_layer_s_is_left_without_hooks(model):
    inputs = batch(SPEECH)
    plain = model(**inputs).logits
    handle = patch(model, DUAL)
    for layer in language_model(model).layers:
        layer.__class__ = type(type(layer).__name__, (type(layer),), {})  # as FSDP2 does it
    assert model(**inputs).logits.shape[1] < plain.shape[1]
    handle.remove()
    assert torch.equal(model(**inputs).logits, plain)
    assert not any(hooks for layer in language_model(model).layers for hooks in type(layer)._affinity_pool_hooks)
    with patch(model, DUAL):
        assert model(**inputs).logits.shape[1] < plain.shape[1]


def test_models_that_share_a_module_are_patched_side_by_side():
    """Positions are noted by a hook on the rotary embedding."""
    first, second = copy.deepcopy(speech_model()), copy.deepcopy(speech_model())
    inputs = batch(SPEECH)
    with patch(first, DUAL, positions="compact"):
        expected = first(**inputs).logits
    language_model(second).rotary_emb = language_model(first).rotary_emb
    with patch(first, DUAL, positions="compact"), patch(second, DUAL, positions="compact"):
        assert torch.equal(first(**inputs).logits, expected)
        assert torch.equal(second(**inputs).logits, expected)


def test_a_decoder_checkpointed_as_a_whole_is_refused_by_that_name(model):
    inputs = batch(SPEECH, "right")
    inner = inner_model(model)
    with patch(model, DUAL):
        inner.language_model = checkpoint_wrapper(inner.language_model)
        loss = model(**inputs, labels=answers(inputs), use_cache=False).loss
        with pytest.raises(RuntimeError, match="run again in the backward pass"):
            loss.backward()


def test_layers_checkpointed_out_of_sight_are_refused(model):
    inputs = batch(SPEECH, "right")
    with patch(model, DUAL):
        checkpoint_out_of_sight(language_model(model).layers)
        loss = model(**inputs, labels=answers(inputs), use_cache=False).loss
        with pytest.raises(RuntimeError, match=r"run again in the backward pass.*gradient_checkpointing_enable"):
            loss.backward()


def test_a_whole_forward_checkpointed_draws_the_same_threshold_again(model):
    inputs = batch(SPEECH, "right")
    ranged = [Site(0, (0.3, 0.9), 1), Site(2, keep=(0.2, 0.9))]
    with patch(model, ranged):
        torch.manual_seed(3)
        wanted = learnt(model, inputs)
        torch.manual_seed(3)

        def loss(ids: Tensor) -> Tensor:
            return model(**inputs | {"input_ids": ids}, labels=answers(inputs)).loss

        given = gradients(model, torch.utils.checkpoint.checkpoint(loss, inputs["input_ids"], use_reentrant=False))
    assert_same(given, wanted)


# Other numbers, other engines.


def test_autocast_and_bfloat16_learn_nearly_the_same(model):
    inputs = batch(SPEECH, "right")
    with patch(model, KEPT), torch.no_grad():
        exact = model(**inputs, labels=answers(inputs)).loss
    with patch(model, KEPT), torch.autocast("cpu", torch.bfloat16):
        loss = model(**inputs, labels=answers(inputs)).loss
    assert all(grad.isfinite().all() for grad in gradients(model, loss).values())
    torch.testing.assert_close(loss, exact, rtol=0.05, atol=0.05)
    halved = copy.deepcopy(model).to(torch.bfloat16)
    speech = {name: x.bfloat16() if x.is_floating_point() else x for name, x in inputs.items()}
    with patch(halved, KEPT):
        loss = halved(**speech, labels=answers(inputs)).loss
    assert all(grad.isfinite().all() for grad in gradients(halved, loss).values())
    torch.testing.assert_close(loss.float(), exact, rtol=0.05, atol=0.05)


def test_accumulated_gradients_are_the_sum(model):
    with patch(model, DUAL):
        parts = [learnt(model, row) for row in SPEECH]
        model.zero_grad()
        for row in SPEECH:
            model(**row, labels=answers(row)).loss.backward()
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(weight.grad, sum(part[name] for part in parts))


@pytest.mark.parametrize(("way", "sites"), [("model", DUAL), ("in place", KEPT), ("layers", DUAL)])
def test_a_compiled_step_has_the_same_gradients(model, sites, way):
    torch.compiler.reset()
    inputs = batch(SPEECH, "right")
    compiled = model
    with patch(model, sites) as handle:
        wanted = learnt(model, inputs)
        if way == "model":
            compiled = torch.compile(model, backend="aot_eager")
        elif way == "in place":
            model.compile(backend="aot_eager")
        else:
            for layer in language_model(model).layers:
                layer.compile(backend="aot_eager")
        given = gradients(model, compiled(**inputs, labels=answers(inputs)).loss)
        other = batch(SPEECH[:2], "right")
        assert gradients(model, compiled(**other, labels=answers(other)).loss)
        assert handle.stats.sites[0].audio_kept < 1
    torch.compiler.reset()
    for name, grad in given.items():
        torch.testing.assert_close(grad, wanted[name], **CLOSE)


@pytest.mark.gpu
def test_a_gpu_learns_what_a_cpu_learns(model):
    inputs = batch(SPEECH, "right")
    with patch(model, KEPT):
        wanted = learnt(model, inputs)
    on_gpu = copy.deepcopy(model).cuda()
    moved = {name: x.cuda() for name, x in inputs.items()}
    with patch(on_gpu, KEPT):
        given = learnt(on_gpu, moved)
        again = learnt(on_gpu, moved)
    for name, grad in given.items():
        torch.testing.assert_close(grad.cpu(), wanted[name], rtol=1e-2, atol=1e-3)
        assert torch.equal(grad, again[name])
