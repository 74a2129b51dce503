"""Where and how strongly to pool this model, and what that costs.

`python pooling.py choose checkpoint` sweeps sites and thresholds on the dev sets, which no test uses, and writes
checkpoint/affinity_pool.json. `python pooling.py report checkpoint --out FILE` measures that choice on the test sets:
the unpooled model, Dual Affinity Pooling, and dropping tokens at equal strides down to the very same counts at the same
sites. All three answer the same utterances, so differences are of pairs, with a bootstrap over utterances.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import affinity_pool
import jiwer
import numpy as np
import torch
from affinity_pool.models import SiteStats
from affinity_pool.models.settings import Pooling, load, sites_json
from affinity_pool.provenance import provenance
from affinity_pool.study.reductions import uniform_drop
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

from evaluate import LONGEST_ANSWER, prompt
from utterances import SETS, WordCache, task_group
from vocabulary import TASKS, answer

Site = affinity_pool.Site

INPUT_RETENTION = (0.74, 0.82)  # of the audio tokens, after the input site
DEEP_RETENTION = (0.15, 0.30)  # after the deep site
INPUT_THRESHOLDS = (0.97, 0.975, 0.98)
DEEP_THRESHOLDS = (0.8, 0.85)
DEEP_LAYERS = (4, 5, 6, 7)


@dataclass
class Answers:
    """What one condition said to a set of utterances, and the audio tokens it left after each site."""

    errors: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    tokens: int = 0
    kept: dict[int, int] = field(default_factory=dict)

    @property
    def error(self) -> float:
        return sum(self.errors) / sum(self.words)

    def retention(self) -> dict[int, float]:
        return {layer: kept / self.tokens for layer, kept in self.kept.items()}


class Bench:
    """The model, and batches of utterances with their right answers."""

    def __init__(self, checkpoint: Path, count: int, batch: int = 32) -> None:
        self.processor = AutoProcessor.from_pretrained(checkpoint)
        self.processor.tokenizer.padding_side = "left"
        self.model = Qwen2AudioForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self.cache, self.count, self.batch = WordCache(), count, batch

    def batches(self, set_name: str, task: str) -> Iterator[tuple[Any, list[str]]]:
        for start in range(0, self.count, self.batch):
            indices = range(start, min(start + self.batch, self.count))
            utterances = [SETS[set_name].utterance(self.cache, task, index) for index in indices]
            inputs = self.processor(
                text=[prompt(self.processor, task)] * len(utterances),
                audio=[utterance.samples for utterance in utterances],
                sampling_rate=16000,
                return_tensors="pt",
                padding=True,
            )
            yield inputs, [" ".join(answer(utterance.words, task)) for utterance in utterances]

    def ask(
        self, inputs: Any, wanted: Sequence[str], pooling: Pooling | None, answers: Answers
    ) -> tuple[SiteStats, ...]:
        """Answer one batch, pooled so or (None) not at all, into `answers`; what the sites did."""
        stats: tuple[SiteStats, ...] = ()
        with torch.no_grad():
            if pooling is not None:
                how = {"positions": pooling.positions, "attention": pooling.attention}
                with affinity_pool.patch(self.model, pooling.sites, **how) as handle:
                    tokens = self.model.generate(**inputs, max_new_tokens=LONGEST_ANSWER, do_sample=False)
                    stats = handle.stats.sites
            else:
                tokens = self.model.generate(**inputs, max_new_tokens=LONGEST_ANSWER, do_sample=False)
        said = self.processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for right, guess in zip(wanted, said, strict=True):
            found = jiwer.process_words(right, guess)
            answers.errors.append(found.substitutions + found.deletions + found.insertions)
            answers.words.append(len(right.split()))
        answers.tokens += int((inputs["input_ids"] == self.model.config.audio_token_id).sum())
        for site in stats:
            answers.kept[site.layer] = answers.kept.get(site.layer, 0) + sum(site.audio_after)
        return stats


def choose(bench: Bench, checkpoint: Path, sets: Sequence[str], say: Callable[[str], None] = print) -> None:
    """Least error on the dev sets within the retention wanted, first at the input, then at the deep site with it."""
    loaded = [batch for name in sets for task in TASKS for batch in bench.batches(name, task)]

    def measure(*sites: Site) -> Answers:
        answers = Answers()
        for inputs, wanted in loaded:
            bench.ask(inputs, wanted, Pooling(sites) if sites else None, answers)
        kept = "  ".join(f"layer {layer} keeps {share:.3f}" for layer, share in answers.retention().items())
        places = ", ".join(f"{site.layer}: {site.threshold}" for site in sites) or "none"
        say(f"sites {places:24} error {answers.error:.4f}  {kept}")
        return answers

    def best(trials: list[tuple[Site, Answers]], layer: int | None, low: float, high: float) -> Site:
        fitting = [
            (answers.error, site.layer, site)
            for site, answers in trials
            if low <= answers.retention()[site.layer if layer is None else layer] <= high
        ]
        if not fitting:
            raise SystemExit(f"no threshold keeps {low:.0%} to {high:.0%}: widen the sweep")
        return min(fitting, key=lambda trial: trial[:2])[2]

    measure()
    at_input = [Site(0, threshold, window=1) for threshold in INPUT_THRESHOLDS]
    first = best([(site, measure(site)) for site in at_input], 0, *INPUT_RETENTION)
    deep = [Site(layer, threshold, window=3) for layer in DEEP_LAYERS for threshold in DEEP_THRESHOLDS]
    second = best([(site, measure(first, site)) for site in deep], None, *DEEP_RETENTION)
    sites = sites_json((first, second))
    file = checkpoint / "affinity_pool.json"
    file.write_text(json.dumps({"sites": sites, "positions": "keep"}, indent=2) + "\n")
    say(f"{file}: {sites}")


def difference(one: Answers, other: Answers, seed: int = 0) -> dict[str, float]:
    """Error of `one` minus that of `other`, in points, with its 95 % interval over paired utterances."""
    words = np.array(one.words)
    gap = np.array(one.errors) - np.array(other.errors)
    drawn = np.random.default_rng(seed).integers(0, len(words), (5000, len(words)))
    low, high = np.percentile(100 * gap[drawn].sum(1) / words[drawn].sum(1), [2.5, 97.5])
    return {"points": float(100 * gap.sum() / words.sum()), "low": float(low), "high": float(high)}


def report(bench: Bench, checkpoint: Path, sets: Sequence[str], out: Path) -> None:
    """Error of the three conditions on each test set and task, and the paired differences."""
    pooling = load(checkpoint)
    rows = []
    for name in sets:
        for task in TASKS:
            plain, pooled, dropped = Answers(), Answers(), Answers()
            for inputs, wanted in bench.batches(name, task):
                bench.ask(inputs, wanted, None, plain)
                stats = bench.ask(inputs, wanted, pooling, pooled)
                same_counts = (Site(s.layer, reduction=uniform_drop(torch.tensor(s.audio_after))) for s in stats)
                bench.ask(inputs, wanted, replace(pooling, sites=tuple(same_counts)), dropped)
            assert dropped.kept == pooled.kept
            row = {
                "set": name,
                "task": task,
                "group": task_group(task),
                "utterances": len(plain.words),
                "words": sum(plain.words),
                "retention": {str(layer): share for layer, share in pooled.retention().items()},
                "error": {"unpooled": plain.error, "pooled": pooled.error, "uniform_drop": dropped.error},
                "pooled_minus_unpooled": difference(pooled, plain),
                "drop_minus_pooled": difference(dropped, pooled),
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
    config = {
        "sites": sites_json(pooling.sites),
        "positions": pooling.positions or "keep",
        "attention": pooling.attention or "plain",
    }
    out.write_text(json.dumps({"provenance": provenance(), "config": config, "results": rows}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("choose", "report"))
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--count", type=int, help="utterances of each set and task (choose: 48, report: 512)")
    parser.add_argument("--set", dest="sets", action="append", choices=SETS)
    parser.add_argument("--out", type=Path, help="where report writes its JSON")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)  # batches this small gain nothing from a second
    kind = "dev" if arguments.what == "choose" else "test"
    sets = arguments.sets or [f"{kind}-espeak", f"{kind}-allison"]
    if arguments.what == "choose":
        choose(Bench(arguments.checkpoint, arguments.count or 48), arguments.checkpoint, sets)
    else:
        if arguments.out is None:
            parser.error("report needs --out FILE")
        report(Bench(arguments.checkpoint, arguments.count or 512), arguments.checkpoint, sets, arguments.out)


if __name__ == "__main__":
    main()
