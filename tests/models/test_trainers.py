"""transformers' Trainer and peft train a patched model: what they do to a model, and around it, leaves it pooled."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import random_encoder_decoders
import torch
import transformers
from random_families import random_model, random_rows
from random_speech import AUDIO, DUAL, IDLE, KEPT, PAD, SPEECH, batch, prompt, speech_model, tokens
from torch import Tensor, nn

from affinity_pool.models import Site, patch

accelerate = pytest.importorskip("accelerate", reason="the Trainer needs accelerate")

RATE = 0.05
RANGES = [Site(0, (0.3, 1.0), window=1), Site(2, keep=(0.3, 0.9))]
PROMPTS = [
    *SPEECH,
    prompt("abcd", 21, "efghij", seed=4),
    prompt("a", 30, "bcde", 9, "fghi", seed=5),
    prompt("abcdefgh", 12, "ij", seed=6),
]
Items = list[dict[str, Tensor]]


@pytest.fixture(autouse=True)
def gradients(one_thread: None) -> Iterator[None]:
    with torch.inference_mode(False), torch.enable_grad():
        yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # or its precision is the next test's


@pytest.fixture
def own_model() -> Any:
    """A model that a test may train. The Trainer takes losses for means of their batch, as this family's are."""
    model = copy.deepcopy(speech_model())
    model.accepts_loss_kwargs = False
    return model


def collated(items: Items, side: str = "right") -> dict[str, Tensor]:
    """A batch whose labels are the text behind each row's first clip."""
    inputs = batch(items, side)
    ids = inputs["input_ids"]
    heard = (ids == AUDIO).cumsum(1) > 0
    inputs["labels"] = ids.masked_fill(~heard | (ids == AUDIO) | (ids == PAD), -100)
    return inputs


def on_the_left(items: Items) -> dict[str, Tensor]:
    return collated(items, "left")


class InOrder(transformers.Trainer):
    """Takes the prompts one after the other; only transformers 5 has a setting for that."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def trainer(model: nn.Module, folder: Path, collate: Callable[..., Any] = collated, **options: Any) -> Any:
    """Three steps of two rows, in the order of the prompts."""
    parts = {
        name: options.pop(name) for name in ("callbacks", "compute_metrics", "compute_loss_func") if name in options
    }
    settings = {
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "learning_rate": RATE,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "remove_unused_columns": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    arguments = transformers.TrainingArguments(str(folder), **(settings | options))
    made = InOrder(model, arguments, data_collator=collate, train_dataset=PROMPTS, eval_dataset=PROMPTS[:5], **parts)
    made.remove_callback(transformers.PrinterCallback)
    return made


def by_hand(
    model: nn.Module,
    collate: Callable[..., Any] = collated,
    accumulate: int = 1,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> tuple[list[float], list[float]]:
    """The losses and gradients' norms of the same steps, in a loop of one's own."""
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], RATE)
    rows = itertools.cycle(PROMPTS)
    losses, norms = [], []
    model.train()
    for _ in range(3):
        step = 0.0
        for _ in range(accumulate):
            with context():
                loss = model(**collate([next(rows), next(rows)])).loss / accumulate
            loss.backward()
            step += loss.item()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(step)
    return losses, norms


@pytest.fixture
def voxtral() -> Any:
    """Of a family whose loss is divided by what the Trainer counted, over all that it accumulates."""
    return copy.deepcopy(random_model("VoxtralForConditionalGeneration"))


def logged(run: Any, name: str = "loss") -> list[float]:
    return [entry[name] for entry in run.state.log_history if name in entry]


def assert_same_weights(one: nn.Module, other: nn.Module, **close: float) -> None:
    torch.testing.assert_close(dict(one.named_parameters()), dict(other.named_parameters()), **close)


def trained_by_hand(sites: list[Site], **options: Any) -> Any:
    """A fresh model after ``by_hand`` under a patch, and what that returned."""
    model = copy.deepcopy(speech_model())
    with patch(model, sites):
        return model, *by_hand(model, **options)


@pytest.mark.parametrize("collate", [collated, on_the_left])
def test_the_trainer_takes_the_steps_of_a_loop_by_hand(own_model, tmp_path, dual, collate):
    expected, losses, norms = trained_by_hand(dual, collate=collate)
    own = own_model.get_parameter
    with patch(own_model, dual) as handle:
        run = trainer(own_model, tmp_path, collate)
        run.train()
        assert handle.stats.sites[0].audio_after < handle.stats.sites[0].audio_before
    assert_same_weights(own_model, expected)
    still = [name for name, weight in speech_model().named_parameters() if torch.equal(weight, own(name))]
    assert still in ([], ["model.audio_tower.embed_positions.weight"])  # gradients pass all sites
    assert logged(run) == pytest.approx(losses, rel=1e-3)  # a log is rounded
    assert logged(run, "grad_norm") == pytest.approx(norms, rel=1e-4)


def test_a_model_may_be_patched_after_the_trainer_has_got_it(own_model, tmp_path):
    expected, *_ = trained_by_hand(DUAL)
    run = trainer(own_model, tmp_path)
    with patch(own_model, DUAL):
        run.train()
    assert_same_weights(own_model, expected)


def test_gradients_are_accumulated(own_model, tmp_path):
    expected, losses, _ = trained_by_hand(DUAL, accumulate=3)
    with patch(own_model, DUAL):
        run = trainer(own_model, tmp_path, gradient_accumulation_steps=3)
        run.train()
    assert_same_weights(own_model, expected)
    assert logged(run) == pytest.approx(losses, rel=1e-3)


def test_losses_are_divided_by_the_labels_the_trainer_counted(voxtral, tmp_path):
    rows = random_rows("VoxtralForConditionalGeneration")
    expected = copy.deepcopy(voxtral)
    weights = list(expected.parameters())
    with patch(expected.train(), KEPT):
        for step in ((0, 1), (2, 0)):
            items = [collated([rows[row]]) for row in step]
            count = sum(int((item["labels"] != -100).sum()) for item in items)
            for item in items:
                expected(**item, num_items_in_batch=count).loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            torch.optim.SGD(weights, RATE).step()
            expected.zero_grad()
    with patch(voxtral, KEPT):
        options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1, "max_steps": 2}
        run = trainer(voxtral, tmp_path, **options)
        run.train_dataset = [*rows, rows[0]]
        assert run.model_accepts_loss_kwargs
        run.train()
    assert_same_weights(voxtral, expected)


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("sites", [DUAL, RANGES], ids=["numbers", "ranges"])
def test_gradient_checkpointing_changes_nothing(own_model, tmp_path, sites, reentrant):
    expected = copy.deepcopy(own_model)
    with patch(expected, sites):
        trainer(expected, tmp_path).train()
    with patch(own_model, sites):
        options = {"gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
        run = trainer(own_model, tmp_path, gradient_checkpointing=True, **options)
        run.train()
    assert_same_weights(own_model, expected)


def test_autocast_reaches_the_layers_behind_a_site(own_model, tmp_path):
    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16)

    expected, losses, _ = trained_by_hand(DUAL, context=autocast)
    with patch(own_model, DUAL) as handle:
        run = trainer(own_model, tmp_path, bf16=True)
        run.train()
        assert handle.stats.sites[1].audio_after < handle.stats.sites[1].audio_before
    assert logged(run) == pytest.approx(losses, rel=1e-3)
    assert_same_weights(own_model, expected)
    # accelerate leaves its function around the forward; inside it nothing is pooled any more
    plain = copy.deepcopy(speech_model())
    plain.load_state_dict(own_model.state_dict())
    with torch.no_grad(), autocast():
        torch.testing.assert_close(own_model.eval()(**SPEECH[0]).logits, plain(**SPEECH[0]).logits.float())


def test_accelerate_s_function_may_be_taken_off_a_patched_model(own_model):
    labelled = collated(PROMPTS[:2])
    inputs = {name: value for name, value in on_the_left(PROMPTS[:2]).items() if name != "labels"}
    plain = own_model(**inputs).logits
    handle = patch(own_model, DUAL)
    expected = [own_model(**labelled).logits, own_model(**inputs).logits, tokens(own_model, inputs)]
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    prepared = accelerator.prepare(own_model)
    assert prepared(**inputs).logits.shape == expected[1].shape
    bare = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    found = [bare(**labelled).logits, bare(**inputs).logits, tokens(bare, inputs)]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    copied = copy.deepcopy(bare)
    handle.remove()
    for unpatched in (bare, copied):
        assert "forward" not in vars(unpatched)
        torch.testing.assert_close(unpatched(**inputs).logits, plain, rtol=0, atol=0)


def accuracy(prediction: Any) -> dict[str, float]:
    logits = prediction.predictions
    logits = logits[0] if isinstance(logits, tuple) else logits
    assert logits.shape[:2] == prediction.label_ids.shape
    wanted = prediction.label_ids[:, 1:]
    right = (logits[:, :-1].argmax(-1) == wanted)[wanted != -100]
    return {"accuracy": float(right.mean()), "answered": float(right.size)}


@pytest.mark.parametrize("rule", ["threshold", "keep"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1], ids=["plain", "smoothed"])
@pytest.mark.parametrize("collate", [collated, on_the_left])
def test_evaluation_in_training_is_the_model_s_own_where_nothing_merges(own_model, tmp_path, rule, smoothing, collate):
    options = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "compute_metrics": accuracy,
        "label_smoothing_factor": smoothing,
        "label_names": ["labels"],
    }
    plain = copy.deepcopy(own_model)
    expected = trainer(plain, tmp_path, collate, **options)
    expected.train()
    with patch(own_model, IDLE[rule], logits="expanded"):
        run = trainer(own_model, tmp_path, collate, **options)
        run.train()
    for name in ("loss", "eval_loss", "eval_accuracy", "eval_answered"):
        assert logged(run, name) == pytest.approx(logged(expected, name), rel=1e-4)
        assert len(logged(run, name)) == 3
    assert_same_weights(own_model, plain)


def test_metrics_and_smoothed_losses_see_the_caller_s_columns_where_tokens_merge(own_model, tmp_path):
    from transformers.trainer_pt_utils import LabelSmoother

    with patch(own_model, DUAL, logits="expanded"):
        run = trainer(own_model, tmp_path, label_smoothing_factor=0.1, compute_metrics=accuracy, max_steps=1)
        inputs = collated(PROMPTS[:2])
        labels = inputs.pop("labels")
        expected = LabelSmoother(0.1)(own_model.train()(**inputs), labels).item()
        run.train()
        assert logged(run) == pytest.approx([expected], rel=1e-3)
        found = run.evaluate()
        own_model.eval()
        right = []
        with torch.no_grad():
            for rows in (PROMPTS[:2], PROMPTS[2:4], PROMPTS[4:5]):
                inputs = collated(rows)
                wanted = inputs.pop("labels")[:, 1:]
                right.append((own_model(**inputs).logits[:, :-1].argmax(-1) == wanted)[wanted != -100])
    assert found["eval_answered"] == len(torch.cat(right))
    assert found["eval_accuracy"] == pytest.approx(float(torch.cat(right).float().mean()))


def test_a_loss_of_one_s_own_reads_expanded_logits_as_the_model_s_reads_pooled_ones(own_model, tmp_path):
    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    expected, losses, _ = trained_by_hand(DUAL)
    with patch(own_model, DUAL, logits="expanded"):
        run = trainer(own_model, tmp_path, compute_loss_func=loss)
        run.train()
    assert_same_weights(own_model, expected, rtol=1e-4, atol=1e-4)
    assert logged(run) == pytest.approx(losses, rel=1e-3)


class Speaker(transformers.TrainerCallback):
    """Generates between steps, as one does to hear how a run comes on, and keeps the weights it did that with."""

    def __init__(self, training: bool) -> None:
        self.training, self.said, self.models = training, [], []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        model.train(self.training)
        self.said.append(tokens(model, batch(PROMPTS[:3])))
        model.train()
        self.models.append(copy.deepcopy(model).eval())


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("training", [False, True], ids=["evaluating", "training"])
def test_generating_between_steps_gives_the_same_and_disturbs_nothing(own_model, tmp_path, training, checkpointing):
    expected, *_ = trained_by_hand(DUAL)
    speaker = Speaker(training)
    with patch(own_model, DUAL):
        trainer(own_model, tmp_path, callbacks=[speaker], gradient_checkpointing=checkpointing).train()
    assert_same_weights(own_model, expected)
    assert len(speaker.said) == 3
    for said, model in zip(speaker.said, speaker.models, strict=True):
        model.gradient_checkpointing_disable()
        with patch(model, DUAL):
            assert torch.equal(said, tokens(model, batch(PROMPTS[:3])))


def test_generating_between_steps_draws_nothing_of_a_range(own_model, tmp_path):
    expected = copy.deepcopy(own_model)
    with patch(expected, RANGES):
        trainer(expected, tmp_path).train()
    with patch(own_model, RANGES):
        trainer(own_model, tmp_path, callbacks=[Speaker(training=False)]).train()
    assert_same_weights(own_model, expected)


@pytest.mark.parametrize("attention", ["plain", "proportional"])
def test_whisper_learns_the_same_under_checkpointing_and_answers_between_steps(tmp_path, attention):
    heard = random_encoder_decoders.speech("whisper")["input_features"]
    rows = [{"input_features": row, "labels": torch.arange(5) + number} for number, row in enumerate(heard)] * 2
    said: list[Tensor] = []

    class Answers(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            for training in (False, True):
                said.append(kwargs["model"].train(training).generate(heard, max_new_tokens=6, do_sample=False))
            assert torch.equal(*said[-2:])

    def collate(items: Items) -> dict[str, Tensor]:
        return {name: torch.stack([item[name] for item in items]) for name in items[0]}

    trained = []
    for options in ({}, {"gradient_checkpointing": True}):
        model = copy.deepcopy(random_encoder_decoders.random_model("whisper"))
        with patch(model, [random_encoder_decoders.some("whisper")], attention=attention) as handle:
            run = trainer(model, tmp_path, collate, callbacks=[Answers()], eval_strategy="steps", **options)
            run.train_dataset = run.eval_dataset = rows
            run.train()
            assert handle.stats.sites[0].audio_after < handle.stats.sites[0].audio_before
        trained.append(model)
    assert_same_weights(*trained)
    assert torch.equal(torch.cat(said[:6]), torch.cat(said[6:]))


class Drawn(transformers.TrainerCallback):
    """What each step's last prefill went by."""

    def __init__(self, handle: Any) -> None:
        self.handle, self.sites = handle, []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.sites.append([(site.threshold, site.keep) for site in self.handle.stats.sites])


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(own_model, tmp_path):
    """Of adapters: transformers 5 cannot resume all weights of this family, which it saves under their old names."""
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "learning_rate": 0.01, "optim": "adamw_torch"}
    again, own_model = lora(copy.deepcopy(own_model)), lora(own_model)
    with patch(own_model, RANGES) as handle:
        drawn = Drawn(handle)
        trainer(own_model, tmp_path, callbacks=[drawn], **options).train()
    assert len({site for step in drawn.sites for site in step}) == 8
    with patch(again, RANGES) as handle:
        resumed = Drawn(handle)
        run = trainer(again, tmp_path, callbacks=[resumed], **options)
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.sites == drawn.sites[2:]
    assert_same_weights(again, own_model)


def test_checkpoints_of_a_patched_model_are_those_of_the_model(own_model, tmp_path):
    kind = type(own_model)
    with patch(own_model, DUAL) as handle:
        run = trainer(own_model, tmp_path, save_strategy="steps", save_steps=3)
        run.train()
        run.save_model(str(tmp_path / "end"))
        handle.save(tmp_path / "end")
    for name in ("checkpoint-3", "end"):
        said = json.loads((tmp_path / name / "config.json").read_text())
        assert said["architectures"] == [kind.__name__]
        assert "affinity" not in json.dumps(said)
        loaded = kind.from_pretrained(tmp_path / name)
        assert type(loaded) is kind
        assert_same_weights(loaded, own_model)
        assert loaded(**SPEECH[0]).logits.shape[1] == SPEECH[0]["input_ids"].shape[1]
    with patch(loaded, tmp_path / "end") as handle:
        assert list(handle.sites) == DUAL
    assert type(own_model) is kind
    assert own_model.config.architectures == [kind.__name__]


def test_evaluation_leaves_the_patch_s_pooled_logits_to_losses_alone(own_model, tmp_path):
    with patch(own_model, DUAL):
        run = trainer(own_model, tmp_path)
        found = run.evaluate()
        own_model.eval()
        with torch.no_grad():
            losses = [own_model(**collated(rows)).loss for rows in (PROMPTS[:2], PROMPTS[2:4], PROMPTS[4:5])]
    whole = sum(float(loss) * rows for loss, rows in zip(losses, (2, 2, 1), strict=True)) / 5
    assert found["eval_loss"] == pytest.approx(whole, rel=1e-4)


def lora(model: Any, **options: Any) -> Any:
    """Adapters with weights of their own, which are the same each time."""
    peft = pytest.importorskip("peft", reason="peft is not installed here")
    torch.manual_seed(7)
    names = rf".*language_model.*\.({'|'.join(['q_proj', 'v_proj', 'down_proj'])})"
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False, **options))


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
        loss = model(**collated(PROMPTS[:3])).loss
        loss.backward()
        found.append((loss, gradients_of(model)))
    torch.testing.assert_close(*found, rtol=0, atol=0)
    assert len(found[0][1]) == 4 * 3 * 2
    # and the same as the weights they stand for
    merged = lora(own_model).merge_and_unload()
    with patch(merged, DUAL):
        torch.testing.assert_close(merged.train()(**collated(PROMPTS[:3])).loss, found[0][0], rtol=1e-4, atol=1e-4)


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

    inputs = collated(PROMPTS[:3])
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
    inputs = collated(PROMPTS[:3])
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
