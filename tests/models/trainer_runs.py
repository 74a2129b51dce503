"""A short run of transformers' Trainer on the prompts of random_speech, the same by hand, and adapters for it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from random_speech import SPEECH, labelled, prompt, speech_model
from torch import Tensor, nn

pytest.importorskip("accelerate", reason="the Trainer needs accelerate")

RATE = 0.05
PROMPTS = [
    *SPEECH,
    prompt("abcd", 21, "efghij", seed=4),
    prompt("a", 30, "bcde", 9, "fghi", seed=5),
    prompt("abcdefgh", 12, "ij", seed=6),
]
Items = list[dict[str, Tensor]]


def on_the_left(items: Items) -> dict[str, Tensor]:
    return labelled(items, "left")


def model_to_train() -> Any:
    """A model that a test may train. The Trainer takes losses for means of their batch, as this family's are."""
    model = copy.deepcopy(speech_model())
    model.accepts_loss_kwargs = False
    return model


class InOrder(transformers.Trainer):
    """Takes the prompts one after the other; only transformers 5 has a setting for that."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def trainer(model: nn.Module, folder: Path, collate: Callable[..., Any] = labelled, **options: Any) -> Any:
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
    collate: Callable[..., Any] = labelled,
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


def logged(run: Any, name: str = "loss") -> list[float]:
    return [entry[name] for entry in run.state.log_history if name in entry]


def assert_same_weights(one: nn.Module, other: nn.Module, **close: float) -> None:
    torch.testing.assert_close(dict(one.named_parameters()), dict(other.named_parameters()), **close)


def lora(model: Any, **options: Any) -> Any:
    """Adapters with weights of their own, which are the same each time."""
    peft = pytest.importorskip("peft", reason="peft is not installed here")
    torch.manual_seed(7)
    names = rf".*language_model.*\.({'|'.join(['q_proj', 'v_proj', 'down_proj'])})"
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False, **options))
