"""What fine-tuning came to: `python compare.py build/finetuned --out FILE`, of the folders that finetune.sh makes

Every model answers every recording with and without pooling, at sites that leave each recording the same tokens
whatever the model. So all differences are of pairs, with the bootstrap's 95 % interval over recordings.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from affinity_pool.provenance import provenance
from affinity_pool.study.runs.scores import by_task, retention, score

SETS = ["test-espeak", "test-allison"]
BEFORE = "as-it-was"
BESIDE = {"pooled": "unpooled", "pooled-lora": "unpooled-lora", "ranged": "pooled"}
"""Trained as long on the same recordings: without pooling, or at one budget instead of many."""
MODELS = [BEFORE, "pooled", "unpooled", "pooled-lora", "unpooled-lora", "ranged"]


def named(model: str, sites: str | None) -> str:
    """A condition: a model, and where it is pooled."""
    return model if sites is None else f"{model} at {sites}"


def answers(folder: Path, model: str) -> list[dict[str, Any]]:
    """A model's answers to a set."""
    lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        record["condition"] = named(model, record["facts"].get("sites"))
    return records


def differences(models: Sequence[str], pooled_at: Iterable[str]) -> dict[str, dict[str, str]]:
    """What is taken off what, by condition."""
    pairs: dict[str, dict[str, str]] = {"unpooled": {}, "as it was": {}, "as it was, unpooled": {}, "beside": {}}
    for sites in pooled_at:
        for model in models:
            condition = named(model, sites)
            pairs["unpooled"][condition] = model
            if model != BEFORE:
                pairs["as it was"][condition] = named(BEFORE, sites)
                pairs["as it was, unpooled"][condition] = BEFORE
            if BESIDE.get(model) in models:
                pairs["beside"][condition] = named(BESIDE[model], sites)
    return pairs


def compare(folder: Path) -> list[dict[str, Any]]:
    """One entry for each set, task, model and way of running it; ``folder`` holds one for each model and set."""
    models = [model for model in MODELS if (folder / f"{model}-{SETS[0]}" / "results.jsonl").exists()]
    entries = []
    for set_name in SETS:
        records = [record for model in models for record in answers(folder / f"{model}-{set_name}", model)]
        pooled_at = dict.fromkeys(sites for record in records if (sites := record["facts"].get("sites")))
        for task, of_task in by_task(records).items():
            scores = {name: score(of_task, against) for name, against in differences(models, pooled_at).items()}
            for condition, metrics in scores["unpooled"].items():
                metric, value = next(iter(metrics.items()))
                found = {name: scored[condition][metric].difference for name, scored in scores.items()}
                entries.append(
                    {
                        "set": set_name,
                        "task": task,
                        "condition": condition,
                        "metric": metric,
                        "retention": retention([r for r in of_task if r["condition"] == condition]),
                        **asdict(value.value),
                        "less": {name: asdict(of) for name, of in found.items() if of is not None},
                    }
                )
    return entries


def table(entries: list[dict[str, Any]]) -> str:
    """Markdown: a row for each model and way of running it, and for its differences; a column for each set and task."""
    columns = list(dict.fromkeys((entry["set"], entry["task"], entry["metric"]) for entry in entries))
    lines = ["| | " + " | ".join(f"{s.removeprefix('test-')} {task} ({metric})" for s, task, metric in columns) + " |"]
    lines.append("|---" * (1 + len(columns)) + "|")
    for condition in dict.fromkeys(entry["condition"] for entry in entries):
        of = {(e["set"], e["task"], e["metric"]): e for e in entries if e["condition"] == condition}
        cells = [of[column] for column in columns]
        lines.append(f"| {condition} | " + " | ".join(_figure(cell, cell["metric"]) for cell in cells) + " |")
        for name in cells[0]["less"]:
            shown = [_figure(cell["less"][name], cell["metric"], sign="+") for cell in cells]
            lines.append(f"| *less {name}* | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _figure(interval: dict[str, Any], metric: str, sign: str = "") -> str:
    """In points: error rates and accuracies are of one, BLEU of a hundred already."""
    unit = 1 if metric == "bleu" else 100
    value, low, high = (unit * interval[name] for name in ("value", "low", "high"))
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def trainings(folder: Path) -> dict[str, Any]:
    """How each model was trained."""
    found = {}
    for file in sorted(folder.glob("*/training.json")):
        run = json.loads(file.read_text())
        found[file.parent.name] = {
            **{name: run[name] for name in ("settings", "trained_parameters", "cpu_minutes", "provenance")},
            "loss": [entry["loss"] for entry in run["log"] if "loss" in entry],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found: dict[str, Any] = {"provenance": provenance(), "trainings": trainings(options.folder)}
    for name in ("eval", "budgets"):
        found[name] = compare(options.folder / name)
        print(f"{name}\n\n{table(found[name])}\n")
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
