"""What fine-tuning came to: `python compare.py build/finetuned/eval --out FILE`, of the folders that finetune.sh makes

Every model answers every recording with and without pooling at the same sites, which leave each recording the same
tokens whatever the model. So all differences are of pairs, with the bootstrap's 95 % interval over recordings.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from affinity_pool.provenance import provenance
from affinity_pool.study.runs.conditions import UNPOOLED
from affinity_pool.study.runs.scores import by_task, retention, score

SETS = ["test-espeak", "test-allison"]
BEFORE = "as-it-was"
MODELS = [BEFORE, "pooled", "unpooled", "pooled-lora", "unpooled-lora"]


def answers(folder: Path, model: str) -> list[dict[str, Any]]:
    """A model's answers to a set, the condition named after the model and whether it was pooled."""
    lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        record["condition"] = named(model, pooled=record["condition"] != UNPOOLED.name)
    return records


def named(model: str, pooled: bool) -> str:
    return f"{model}, pooled" if pooled else model


def differences() -> dict[str, dict[str, str]]:
    """What is compared with what."""
    pooled = {model: named(model, pooled=True) for model in MODELS}
    return {
        "pooled less unpooled, same model": {pooled[model]: model for model in MODELS},
        "pooled less the model as it was, pooled": {pooled[model]: pooled[BEFORE] for model in MODELS[1:]},
        "pooled less the model as it was, unpooled": {pooled[model]: BEFORE for model in MODELS[1:]},
        "trained pooled less trained unpooled, both pooled": {
            pooled[f"pooled{kind}"]: pooled[f"unpooled{kind}"] for kind in ("", "-lora")
        },
    }


def compare(folder: Path) -> list[dict[str, Any]]:
    """One entry for each set, task, model and way of running it."""
    entries = []
    for set_name in SETS:
        records = [record for model in MODELS for record in answers(folder / f"{model}-{set_name}", model)]
        for task, of_task in by_task(records).items():
            scores = {name: score(of_task, against) for name, against in differences().items()}
            for condition, metrics in next(iter(scores.values())).items():
                metric, value = next(iter(metrics.items()))
                own = [record for record in of_task if record["condition"] == condition]
                found = {name: scored[condition][metric].difference for name, scored in scores.items()}
                entries.append(
                    {
                        "set": set_name,
                        "task": task,
                        "condition": condition,
                        "metric": metric,
                        "retention": retention(own),
                        **asdict(value.value),
                        "differences": {name: asdict(of) for name, of in found.items() if of is not None},
                    }
                )
    return entries


def table(entries: list[dict[str, Any]]) -> str:
    """Markdown: a row for each model and way of running it, a column for each set and task."""
    columns = list(dict.fromkeys((entry["set"], entry["task"], entry["metric"]) for entry in entries))
    lines = ["| | " + " | ".join(f"{s.removeprefix('test-')} {task} ({metric})" for s, task, metric in columns) + " |"]
    lines.append("|---" * (1 + len(columns)) + "|")
    for condition in dict.fromkeys(entry["condition"] for entry in entries):
        cells = [
            next(e for e in entries if e["condition"] == condition and (e["set"], e["task"], e["metric"]) == column)
            for column in columns
        ]
        lines.append(f"| {condition} | " + " | ".join(_figure(cell, cell["metric"]) for cell in cells) + " |")
        for name in cells[0]["differences"]:
            shown = [_figure(cell["differences"][name], cell["metric"], sign="+") for cell in cells]
            lines.append(f"| *{name}* | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _figure(interval: dict[str, Any], metric: str, sign: str = "") -> str:
    """In points: error rates and shares are of one, BLEU of a hundred already."""
    unit = 1 if metric == "bleu" else 100
    value, low, high = (unit * interval[name] for name in ("value", "low", "high"))
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    entries = compare(options.folder)
    runs = {}
    for model in MODELS[1:]:
        run = json.loads((options.folder.parent / model / "training.json").read_text())
        runs[model] = {name: run[name] for name in ("settings", "trained_parameters", "cpu_minutes", "provenance")}
        runs[model]["loss"] = [entry["loss"] for entry in run["log"] if "loss" in entry]
    found = {"provenance": provenance(), "trainings": runs, "results": entries}
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(entries))


if __name__ == "__main__":
    main()
