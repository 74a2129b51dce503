"""transformers' Trainer trains a patched model: what it does to a model, and around it, leaves it pooled."""

from __future__ import annotations

import copy
import json
from contextlib import AbstractContextManager
from typing import Any

import pytest
import random_encoder_decoders
import torch
import transformers
from packaging.version import Version
from random_families import random_model, random_rows
from random_speech import DUAL, IDLE, KEPT, RANGES, SPEECH, batch, labelled, speech_model, tokens
from torch import Tensor, nn
from trainer_runs import (
    PROMPTS,
    RATE,
    Items,
    assert_same_weights,
    by_hand,
    logged,
    lora,
    model_to_train,
    on_the_left,
    trainer,
)

from affinity_pool.models import Site, patch

accelerate = pytest.importorskip("accelerate", reason="the Trainer needs accelerate")

KEEPS_CACHES = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.24"),
    reason="transformers, 5.20 for one, drops caches in training mode with checkpointing: without a patch too",
)

pytestmark = pytest.mark.usefixtures("learning", "fresh_accelerator")


@pytest.fixture
def own_model() -> Any:
    return model_to_train()


@pytest.fixture
def voxtral() -> Any:
    """Of a family whose loss is divided by what the Trainer counted, over all that it accumulates."""
    return copy.deepcopy(random_model("VoxtralForConditionalGeneration"))


def trained_by_hand(sites: list[Site], **options: Any) -> Any:
    """A fresh model after ``by_hand`` under a patch, and what that returned."""
    model = copy.deepcopy(speech_model())
    with patch(model, sites):
        return model, *by_hand(model, **options)


@pytest.mark.parametrize("collate", [labelled, on_the_left])
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
            items = [labelled([rows[row]]) for row in step]
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
    given = labelled(PROMPTS[:2])
    inputs = {name: value for name, value in on_the_left(PROMPTS[:2]).items() if name != "labels"}
    plain = own_model(**inputs).logits
    handle = patch(own_model, DUAL)
    expected = [own_model(**given).logits, own_model(**inputs).logits, tokens(own_model, inputs)]
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    prepared = accelerator.prepare(own_model)
    assert prepared(**inputs).logits.shape == expected[1].shape
    bare = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    found = [bare(**given).logits, bare(**inputs).logits, tokens(bare, inputs)]
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
@pytest.mark.parametrize("collate", [labelled, on_the_left])
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
        inputs = labelled(PROMPTS[:2])
        labels = inputs.pop("labels")
        expected = LabelSmoother(0.1)(own_model.train()(**inputs), labels).item()
        run.train()
        assert logged(run) == pytest.approx([expected], rel=1e-3)
        found = run.evaluate()
        own_model.eval()
        right = []
        with torch.no_grad():
            for rows in (PROMPTS[:2], PROMPTS[2:4], PROMPTS[4:5]):
                inputs = labelled(rows)
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
@KEEPS_CACHES
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
@KEEPS_CACHES
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
            losses = [own_model(**labelled(rows)).loss for rows in (PROMPTS[:2], PROMPTS[2:4], PROMPTS[4:5])]
    whole = sum(float(loss) * rows for loss, rows in zip(losses, (2, 2, 1), strict=True)) / 5
    assert found["eval_loss"] == pytest.approx(whole, rel=1e-4)
