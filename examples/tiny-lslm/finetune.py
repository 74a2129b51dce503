"""Fine-tune the bundled model while it is pooled: `python finetune.py --sites 0:keep=0.4,7:keep=0.25 --out FOLDER`

What one would do with any speech language model, by the tools one would take: transformers' Trainer, peft's LoRA, the
processor and its chat template, answers as labels, batches padded on the right. The one line that is this project's
puts the patch on the model before the Trainer gets it.

Utterances are made as train.py makes them, never the same twice; the seed and an utterance's number say which. So runs
of equal steps learn from equal recordings, pooled or not.
"""

import argparse
import contextlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from affinity_pool.models import patch
from affinity_pool.provenance import provenance
from affinity_pool.study.sites import parse_sites
from peft import LoraConfig, get_peft_model
from torch.utils.data import Dataset
from transformers import (
    AutoProcessor,
    ProcessorMixin,
    Qwen2AudioForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

from evaluate import prompt
from model import IGNORE
from train import SOURCE_SHARES, SOURCES, TASK_SHARES
from utterances import WordCache, compose
from vocabulary import TASKS, answer

LONGEST = 8  # words
RATE, LORA_RATE = 3e-4, 1e-3


class Utterances(Dataset):
    """``count`` utterances with a task and its answer each; the seed and the number decide all of it."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.cache = count, seed, WordCache()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        draw = np.random.default_rng([self.seed, index])
        task = str(draw.choice(TASKS, p=TASK_SHARES))
        source = str(draw.choice(SOURCES, p=SOURCE_SHARES))
        words = int(draw.integers(1, LONGEST + 1))
        utterance = compose(self.cache, draw, "train", source, words, translatable=task == "spanish")
        return {"wave": utterance.samples, "task": task, "answer": " ".join(answer(utterance.words, task))}


class Collator:
    """Prompts and answers as one batch, padded on the right; the answers alone are labels."""

    def __init__(self, processor: ProcessorMixin) -> None:
        self.processor = processor
        processor.tokenizer.padding_side = "right"

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        tokenizer = self.processor.tokenizer
        texts, answers = [], []
        for item in items:
            said = f"{item['answer']} {tokenizer.eos_token}"
            texts.append(f"{prompt(self.processor, item['task'])} {said}")
            answers.append(len(tokenizer(said)["input_ids"]))
        waves = [item["wave"] for item in items]
        batch = self.processor(text=texts, audio=waves, sampling_rate=16000, return_tensors="pt", padding=True)
        labels = batch["input_ids"].clone()
        for row, mask, tokens in zip(labels, batch["attention_mask"], answers, strict=True):
            end = int(mask.sum())
            row[: end - tokens] = IGNORE
            row[end:] = IGNORE
        return {**batch, "labels": labels}


def adapted(model: torch.nn.Module, rank: int = 16) -> torch.nn.Module:
    """The model with LoRA on every linear layer of its decoder."""
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    parts = rf".*language_model.*\.({'|'.join(names)})"
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", help="where to pool, as in affinity-pool eval, or a JSON file; none: nowhere")
    parser.add_argument("--lora", action="store_true", help="train adapters in the decoder instead of all weights")
    parser.add_argument("--steps", type=int, default=480, help="at 2.2 s unpooled, 1.8 s at 40 %% of the tokens")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", type=Path, default=Path(__file__).parent / "checkpoint")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    torch.set_flush_denormal(True)
    processor = AutoProcessor.from_pretrained(options.model)
    model: Any = Qwen2AudioForConditionalGeneration.from_pretrained(options.model, dtype=torch.float32)
    if options.lora:
        model = adapted(model)
    else:
        model.model.audio_tower.embed_positions.requires_grad_(False)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    settings = TrainingArguments(
        str(options.out / "run"),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch,
        learning_rate=LORA_RATE if options.lora else RATE,
        lr_scheduler_type="cosine",
        warmup_steps=options.steps // 20,
        weight_decay=0.0 if options.lora else 0.03,
        max_grad_norm=1.0,
        logging_steps=25,
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        seed=options.seed,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model,
        settings,
        data_collator=Collator(processor),
        train_dataset=Utterances(options.steps * options.batch, options.seed),
    )
    sites = options.sites
    if sites is not None and not Path(sites).exists():
        sites = parse_sites(sites, model.config.text_config.num_hidden_layers).pooling.sites
    with contextlib.nullcontext() if sites is None else patch(model, sites) as handle:
        begun = time.process_time()
        trainer.train()
        spent = time.process_time() - begun
        model.eval()
        options.out.mkdir(parents=True, exist_ok=True)
        if options.lora:
            model.save_pretrained(options.out / "adapter")
            model = model.merge_and_unload()
        model.save_pretrained(options.out)
        if handle is not None:
            handle.save(options.out)
    AutoProcessor.from_pretrained(options.model).save_pretrained(options.out)
    facts = {
        "provenance": provenance(),
        "settings": {name: str(value) for name, value in vars(options).items()},
        "trained_parameters": trained,
        "cpu_minutes": round(spent / 60, 2),
        "log": trainer.state.log_history,
    }
    (options.out / "training.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
