"""Train the tiny speech LLM from scratch: two ranks of one thread each, started by ./train.sh, which says how long.

What makes four million parameters learn to listen within an hour on two cores:

- a curriculum, from two words an utterance to eight: a level is passed when 70 % of the answer's tokens are right
  with the right ones before them; the learning rate decays only when the last level is reached;
- a second loss on the projector's output, which has to name the word of every 40 ms frame: the alignment is known,
  and without it the decoder has to find it; its weight falls from 1 to 0.1 and its layer is thrown away;
- answers of one token (`first`, `last`) count double, or transcription drowns them.

A step is made of the seed, the step and the rank alone, so a run that was interrupted goes on as if it had not been.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from evaluate import evaluate
from model import (
    IGNORE,
    MELS,
    WIDTH,
    assemble,
    build_model,
    build_processor,
    encode,
    log_mel,
    save_checkpoint,
    train_in_bfloat16,
)
from utterances import FRAME_CLASSES, WordCache, compose
from vocabulary import TASKS, TOKEN_ID, answer, build_tokenizer
from words import BUILD

LEVELS = [2, 3, 4, 6, 8]  # most words in an utterance
PASS_ACCURACY = 0.70  # 0.85 was too slow
PASS_BATCHES = 20
TASK_LEVEL = 1  # before it, transcription only
TASK_SHARES = [0.70, 0.075, 0.075, 0.15]
SOURCES = ["espeak", "allison", "flite"]
SOURCE_SHARES = [9 / 17, 6 / 17, 2 / 17]
WORDS_PER_BATCH = {2: 94, 3: 115, 4: 115, 6: 144, 8: 144}  # of one rank
PEAK_RATE = 1.5e-3
WARMUP_STEPS = 150
HOLD = 0.35  # share of the steps before the decay, if the curriculum is through by then
FLOOR = 0.02  # share of the peak rate at the end
SHORT_ANSWER_WEIGHT = 2.0
SMOOTHING = 0.02
PATIENCE = timedelta(hours=2)  # a rank may be paused for other work


@dataclass
class Progress:
    """All that a run remembers besides weights and moments."""

    step: int = 0
    level: int = 0
    accuracy: float = 0.0  # running, of transcription at the current level
    batches_at_level: int = 0
    decay_from: int | None = None  # set once the curriculum is through
    seconds: float = 0.0
    utterances: int = 0

    def note(self, accuracy: float, at_level: bool) -> bool:
        """Take in a batch's accuracy; True when that passed a level."""
        if at_level:
            self.accuracy = 0.95 * self.accuracy + 0.05 * accuracy
            self.batches_at_level += 1
        passed = self.accuracy > PASS_ACCURACY and self.batches_at_level > PASS_BATCHES
        if not passed or self.level == len(LEVELS) - 1:
            return False
        self.level, self.accuracy, self.batches_at_level = self.level + 1, 0.5, 0
        return True

    def rate(self, steps: int) -> float:
        """Linear warm-up, hold, half a cosine down to the floor."""
        if self.decay_from is None and self.level == len(LEVELS) - 1 and self.step >= HOLD * steps:
            self.decay_from = self.step
        done = 0.0
        if self.decay_from is not None:
            done = min(1.0, (self.step - self.decay_from) / max(1, steps - self.decay_from))
        decay = FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * done))
        return PEAK_RATE * min(1.0, (self.step + 1) / WARMUP_STEPS) * decay

    def frame_weight(self, steps: int) -> float:
        """1 for the first half, then down to 0.1."""
        return min(1.0, max(0.1, 1 - 1.8 * (self.step / steps - 0.5)))


@dataclass
class Batch:
    """Utterances sorted by length, longest first."""

    mel: torch.Tensor
    counts: torch.Tensor
    frames: torch.Tensor
    answers: list[list[int]]
    tasks: list[str]

    def halves(self) -> Iterator["Batch"]:
        """The longer and the shorter half, each cut to its own longest: less padding."""
        middle = len(self.tasks) // 2
        for part in (slice(0, middle), slice(middle, None)):
            longest = int(self.counts[part].max())
            mel, frames = self.mel[part, :, : 4 * longest], self.frames[part, :longest]
            yield Batch(mel, self.counts[part], frames, self.answers[part], self.tasks[part])


def make_batch(
    cache: WordCache, draw: np.random.Generator, least: int, most: int, size: int, tasks: bool, tempo: bool
) -> Batch:
    """`size` utterances of `least` to `most` words, at many tempi if `tempo`; transcription only unless `tasks`."""
    chosen = [str(draw.choice(TASKS, p=TASK_SHARES)) if tasks else "transcribe" for _ in range(size)]
    pairs = []
    for task in chosen:
        source = str(draw.choice(SOURCES, p=SOURCE_SHARES))
        count = int(draw.integers(least, most + 1))
        translatable = task == "spanish"
        pairs.append((compose(cache, draw, "train", source, count, translatable=translatable, tempo=tempo), task))
    pairs.sort(key=lambda pair: -len(pair[0].samples))
    mel = log_mel([torch.from_numpy(utterance.samples) for utterance, _ in pairs])
    _mask_and_tilt(mel, draw)
    frames = [torch.from_numpy(utterance.frames) for utterance, _ in pairs]
    return Batch(
        mel,
        torch.tensor([len(classes) for classes in frames]),
        torch.nn.utils.rnn.pad_sequence(frames, batch_first=True, padding_value=IGNORE),
        [[TOKEN_ID[word] for word in answer(utterance.words, task)] for utterance, task in pairs],
        [task for _, task in pairs],
    )


def _mask_and_tilt(mel: torch.Tensor, draw: np.random.Generator) -> None:
    """In place: a band and a moment hidden in every second item (SpecAugment), a random colour for each."""
    for item in mel:
        if draw.random() < 0.5:
            height = int(draw.integers(0, 12))
            low = int(draw.integers(0, MELS - height))
            item[low : low + height] = item.mean()
        if draw.random() < 0.5:
            length = int(draw.integers(0, 10))
            start = int(draw.integers(0, max(1, item.shape[1] - length)))
            item[:, start : start + length] = item.mean()
        tilt = np.interp(np.arange(MELS), [0, 26, 53, 79], draw.uniform(-0.12, 0.12, 4))
        item += torch.from_numpy(tilt.astype(np.float32))[:, None]


@dataclass
class Losses:
    answer: float = 0.0
    frame: float = 0.0
    right: int = 0  # transcription tokens
    tokens: int = 0


def backward(model: nn.Module, frame_head: nn.Linear, batch: Batch, frame_weight: float) -> Losses:
    """Gradients of one batch, in two halves."""
    weights = [SHORT_ANSWER_WEIGHT if task in ("first", "last") else 1.0 for task in batch.tasks]
    answer_weight = sum(w * (len(a) + 1) for w, a in zip(weights, batch.answers, strict=True))
    frame_count = int(batch.counts.sum())
    losses = Losses()
    done = 0
    for half in batch.halves():
        with torch.autocast("cpu", torch.bfloat16):
            audio = encode(model, half.mel, half.counts)
            frame_logits = frame_head(audio).flatten(0, 1).float()
            inputs, labels = assemble(model, audio, half.counts, half.answers, half.tasks)
            hidden = model.model.language_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
            said = labels != IGNORE
            logits = model.lm_head(hidden[said]).float()
        targets = labels[said]
        weight = torch.tensor(weights[done : done + len(half.tasks)])[:, None].expand_as(labels)[said]
        done += len(half.tasks)
        answer_loss = F.cross_entropy(logits, targets, label_smoothing=SMOOTHING, reduction="none")
        answer_loss = (answer_loss * weight).sum() / answer_weight
        frame_loss = F.cross_entropy(frame_logits, half.frames.flatten(), ignore_index=IGNORE, reduction="sum")
        frame_loss = frame_loss / frame_count
        (answer_loss + frame_weight * frame_loss).backward()

        losses.answer += answer_loss.item()
        losses.frame += frame_loss.item()
        transcribed = torch.tensor([task == "transcribe" for task in half.tasks])[:, None].expand_as(labels)[said]
        losses.right += int(((logits.argmax(-1) == targets) & transcribed).sum())
        losses.tokens += int(transcribed.sum())
    return losses


class Run:
    """One rank's side of a training run."""

    def __init__(self, steps: int, seed: int, out: Path, tempo: bool) -> None:
        self.steps, self.seed, self.out, self.tempo = steps, seed, out, tempo
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        torch.manual_seed(seed)
        self.cache = WordCache()
        self.model = build_model()
        train_in_bfloat16(self.model)
        self.frame_head = nn.Linear(WIDTH, FRAME_CLASSES)
        self.parameters = [p for p in (*self.model.parameters(), *self.frame_head.parameters()) if p.requires_grad]
        groups = [
            {"params": [p for p in self.parameters if p.ndim > 1], "weight_decay": 0.03},
            {"params": [p for p in self.parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98), fused=True)
        self.progress = Progress()
        self.saved = BUILD / ("training.pt" if tempo else "training-no-tempo.pt")

    def say(self, line: str) -> None:
        if self.rank == 0:
            print(line, flush=True)

    def save(self) -> None:
        """Weights, moments and progress, for resuming."""
        if self.rank:
            return
        state = {
            "model": self.model.state_dict(),
            "frame_head": self.frame_head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
            "seed": self.seed,
        }
        torch.save(state, self.saved.with_suffix(".part"))
        os.replace(self.saved.with_suffix(".part"), self.saved)

    def resume(self) -> None:
        if not self.saved.exists():
            return
        state = torch.load(self.saved, weights_only=True)
        if state["seed"] != self.seed:
            raise SystemExit(f"{self.saved} is of seed {state['seed']}: remove it to start another run")
        self.model.load_state_dict(state["model"])
        self.frame_head.load_state_dict(state["frame_head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])
        self.say(f"resumed at step {self.progress.step}")

    def step(self) -> tuple[Losses, float]:
        """One update; the losses of this rank and the norm of the gradient."""
        progress = self.progress
        for group in self.optimizer.param_groups:
            group["lr"] = progress.rate(self.steps)
        shared = np.random.default_rng([self.seed, progress.step])  # the ranks' batches cost the same
        own = np.random.default_rng([self.seed, progress.step, 1 + self.rank])
        level_words = LEVELS[progress.level]
        most = level_words if shared.random() < 0.6 else int(shared.integers(1, level_words + 1))
        size = min(64, max(8, WORDS_PER_BATCH[level_words] // most))
        batch = make_batch(self.cache, own, max(1, most - 1), most, size, progress.level >= TASK_LEVEL, self.tempo)

        self.optimizer.zero_grad(set_to_none=True)
        losses = backward(self.model, self.frame_head, batch, progress.frame_weight(self.steps))
        accuracy = self._mean_over_ranks(losses.right / max(1, losses.tokens))
        norm = float(nn.utils.clip_grad_norm_(self.parameters, 1.0, error_if_nonfinite=True))
        self.optimizer.step()
        progress.step += 1
        progress.utterances += size * self.ranks
        if progress.note(accuracy, at_level=most == level_words):
            self.say(f"step {progress.step}: now up to {LEVELS[progress.level]} words")
        return losses, norm

    def _mean_over_ranks(self, accuracy: float) -> float:
        """All gradients and the accuracy, averaged in one message."""
        flat = torch.cat([*(p.grad.flatten() for p in self.parameters), torch.tensor([accuracy])])
        dist.all_reduce(flat)
        flat /= self.ranks
        pieces = flat[:-1].split([p.numel() for p in self.parameters])
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            parameter.grad.copy_(piece.view_as(parameter))
        return float(flat[-1])

    def check(self, count: int) -> None:
        """Errors on development utterances by the official path; the ranks share the work."""
        jobs = [("dev-espeak", "transcribe"), ("dev-allison", "transcribe")]
        if self.progress.level >= TASK_LEVEL:
            jobs += [("dev-espeak", "spanish"), ("dev-allison", "last")]
        self.model.eval()
        processor = build_processor(build_tokenizer())
        own = [evaluate(self.model, processor, self.cache, *job, count) for job in jobs[self.rank :: self.ranks]]
        self.model.train()
        everyone: list[list[dict]] = [[] for _ in range(self.ranks)]
        dist.all_gather_object(everyone, own)
        errors = {f"{r['set']} {r['task']}": round(r["error"], 3) for results in everyone for r in results}
        self.say(f"step {self.progress.step}: errors {json.dumps(errors)}")

    def train(self, save_every: int, check_every: int) -> None:
        """All the steps that are left, then the checkpoint."""
        self.resume()
        self.model.train()
        progress = self.progress
        mean_loss, mark = None, time.monotonic()
        while progress.step < self.steps:
            losses, norm = self.step()
            mean_loss = losses.answer if mean_loss is None else 0.95 * mean_loss + 0.05 * losses.answer
            if progress.step % 25 == 0:
                elapsed, mark = time.monotonic() - mark, time.monotonic()
                progress.seconds += elapsed
                left = (self.steps - progress.step) * elapsed / 25 / 60
                self.say(
                    f"step {progress.step}/{self.steps} {progress.seconds / 60:.1f} min (left {left:.0f})  "
                    f"words {LEVELS[progress.level]}  loss {mean_loss:.3f}  accuracy {progress.accuracy:.3f}  "
                    f"frames {losses.frame:.3f}  norm {norm:.2f}  rate {progress.rate(self.steps):.2e}  "
                    f"{elapsed / 25:.2f} s/step"
                )
            if progress.step % save_every == 0:
                self.save()
            if progress.step % check_every == 0:
                self.check(count=48)
        self.save()
        self.check(count=128)
        if self.rank == 0:
            save_checkpoint(self.model, self.out)
            self.say(f"done: {progress.utterances} utterances in {progress.seconds / 60:.0f} min -> {self.out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "checkpoint")
    parser.add_argument("--save-every", type=int, default=100, help="steps")
    parser.add_argument("--check-every", type=int, default=300, help="steps")
    parser.add_argument("--no-tempo", dest="tempo", action="store_false", help="the ablation: words as spoken only")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    dist.init_process_group("gloo", timeout=PATIENCE)
    Run(arguments.steps, arguments.seed, arguments.out, arguments.tempo).train(
        arguments.save_every, arguments.check_every
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
