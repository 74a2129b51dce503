"""Error of a checkpoint for every task: `python evaluate.py checkpoint --set test-allison --count 512`

Only official classes touch the checkpoint: from_pretrained, the processor with its chat template, generate. The error
of a task is the word error rate of its answer; for `first` and `last`, whose answer is one word, the share of wrong
answers. The 95 % interval is a bootstrap over utterances.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import jiwer
import numpy as np
import torch
from affinity_pool.provenance import provenance
from transformers import AutoProcessor, ProcessorMixin, Qwen2AudioForConditionalGeneration

from utterances import SETS, WordCache, task_group
from vocabulary import TASKS, answer

LONGEST_ANSWER = 12  # tokens; the longest right answer has 8 and the end token


def prompt(processor: ProcessorMixin, task: str) -> str:
    """What asks for a task, up to where the answer begins."""
    turn = [{"role": "user", "content": [{"type": "audio", "audio_url": "-"}, {"type": "text", "text": task}]}]
    return processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)


@torch.no_grad()
def generate(
    model: Qwen2AudioForConditionalGeneration,
    processor: ProcessorMixin,
    waves: Sequence[np.ndarray],
    tasks: Sequence[str],
    batch: int = 32,
) -> list[str]:
    """The model's greedy answer to each pair of a wave (16 kHz) and a task."""
    processor.tokenizer.padding_side = "left"
    said: list[str] = []
    for start in range(0, len(waves), batch):
        chosen = slice(start, start + batch)
        prompts = [prompt(processor, task) for task in tasks[chosen]]
        inputs = processor(
            text=prompts, audio=list(waves[chosen]), sampling_rate=16000, return_tensors="pt", padding=True
        )
        tokens = model.generate(**inputs, max_new_tokens=LONGEST_ANSWER, do_sample=False)
        tokens = tokens[:, inputs["input_ids"].shape[1] :]
        said += processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return said


def score(wanted: Sequence[str], said: Sequence[str], seed: int = 0) -> dict[str, float]:
    """Word error rate with its bootstrap interval, and the kinds of errors."""
    words = np.array([len(text.split()) for text in wanted])
    outputs = [jiwer.process_words(right, guess) for right, guess in zip(wanted, said, strict=True)]
    errors = np.array([out.substitutions + out.deletions + out.insertions for out in outputs])
    drawn = np.random.default_rng(seed).integers(0, len(words), (2000, len(words)))
    low, high = np.percentile(errors[drawn].sum(1) / words[drawn].sum(1), [2.5, 97.5])
    return {
        "error": float(errors.sum() / words.sum()),
        "low": float(low),
        "high": float(high),
        "words": int(words.sum()),
        "substitutions": sum(out.substitutions for out in outputs),
        "deletions": sum(out.deletions for out in outputs),
        "insertions": sum(out.insertions for out in outputs),
    }


def evaluate(
    model: Qwen2AudioForConditionalGeneration,
    processor: ProcessorMixin,
    cache: WordCache,
    set_name: str,
    task: str,
    count: int,
) -> dict[str, float | str]:
    """The score of one task on the first `count` utterances of a set."""
    utterances = [SETS[set_name].utterance(cache, task, index) for index in range(count)]
    said = generate(model, processor, [u.samples for u in utterances], [task] * count)
    wanted = [" ".join(answer(u.words, task)) for u in utterances]
    return {"set": set_name, "task": task, "utterances": count, **score(wanted, said)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--set", dest="sets", action="append", choices=SETS, help="default: the four test sets")
    parser.add_argument("--task", dest="tasks", action="append", choices=TASKS, help="default: all")
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--out", type=Path, help="write the scores as JSON")
    arguments = parser.parse_args()

    torch.set_flush_denormal(True)
    processor = AutoProcessor.from_pretrained(arguments.checkpoint)
    model = Qwen2AudioForConditionalGeneration.from_pretrained(arguments.checkpoint, dtype=torch.float32).eval()
    cache = WordCache()
    results = []
    for set_name in arguments.sets or [name for name in SETS if name.startswith("test")]:
        for task in arguments.tasks or TASKS:
            count = arguments.count // 2 if task_group(task) == "question" else arguments.count
            result = evaluate(model, processor, cache, set_name, task, count)
            results.append(result)
            print("{set:20} {task:10} {error:.4f}  [{low:.4f}, {high:.4f}]".format(**result), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps({"provenance": provenance(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
