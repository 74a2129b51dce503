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
    pairs["as it was"] |= {model: BEFORE for model in models if model != BEFORE}
    pairs["beside"] |= {model: BESIDE[model] for model in models if BESIDE.get(model) in models}
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


ROWS = {
    "as it was, unpooled": (BEFORE, False),
    "as it was, pooled": (BEFORE, True),
    "**trained pooled**, all weights": ("pooled", True),
    "**trained pooled**, LoRA": ("pooled-lora", True),
    "trained as long unpooled, all weights, then pooled": ("unpooled", True),
    "trained as long unpooled, LoRA, then pooled": ("unpooled-lora", True),
    "trained pooled, all weights, run unpooled": ("pooled", False),
    "trained pooled, LoRA, run unpooled": ("pooled-lora", False),
    "trained as long unpooled, all weights, run unpooled": ("unpooled", False),
    "trained as long unpooled, LoRA, run unpooled": ("unpooled-lora", False),
}
TITLES = {"wer": "WER", "exact": "right", "bleu": "BLEU"}
BUDGETS = {
    BEFORE: "as it was",
    "pooled": "trained at 40 % and 10 %",
    "ranged": "trained at shares drawn from 25 to 100 %",
}


def tables(found: dict[str, Any]) -> list[str]:
    """Markdown, as docs/training.md has it: for each set the models by tasks, then models by budgets."""
    return [_by_task(found["eval"], set_name) for set_name in SETS] + [_by_budget(found["budgets"])]


def _by_task(entries: list[dict[str, Any]], set_name: str) -> str:
    of_set = [entry for entry in entries if entry["set"] == set_name]
    tasks = {entry["task"]: TITLES[entry["metric"]] for entry in of_set}
    rows = []
    for title, (model, pooled) in ROWS.items():
        own = [e for e in of_set if e["condition"].partition(" at ")[0] == model and bool(e["retention"]) == pooled]
        rows.append([title, *(_cell(next(e for e in own if e["task"] == task)) for task in tasks)])
    return _markdown([f"`{set_name}`", *(f"`{task}`, {metric}" for task, metric in tasks.items())], rows)


def _by_budget(entries: list[dict[str, Any]]) -> str:
    rows, columns = [], {}
    for set_name in SETS:
        for model, title in BUDGETS.items():
            own = [e for e in entries if e["set"] == set_name and e["condition"].partition(" at ")[0] == model]
            cells = {e["condition"].partition(" at ")[2]: e for e in own}
            columns |= {sites: _left(cell["retention"]) for sites, cell in cells.items()}
            rows.append([f"`{set_name}`, {title}", *(_cell(cells[sites]) for sites in columns)])
    return _markdown(["WER of `transcribe`; left at the input, after layer 7", *columns.values()], rows)


def _left(retention: list[float]) -> str:
    return ", ".join(f"{100 * share:.0f} %" for share in retention) or "all"


def _cell(entry: dict[str, Any]) -> str:
    """A figure in points, and how far it is from the model as it was, pooled alike."""

    def points(value: float, sign: str = "") -> str:
        return f"{value if entry['metric'] == 'bleu' else 100 * value:{sign}.1f}"

    shown = points(entry["value"]) + ("" if entry["metric"] == "bleu" else " %")
    if (less := entry["less"].get("as it was")) is None:
        return shown
    value, low, high = (points(less[name], "+") for name in ("value", "low", "high"))
    return f"{shown} ({value} [{low}, {high}])"


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def trainings(folder: Path) -> dict[str, Any]:
    """How each model was trained."""
    found = {}
    for file in sorted(folder.glob("*/training.json")):
        run = json.loads(file.read_text())
        found[file.parent.name] = {
            "settings": {name: Path(value).name for name, value in run["settings"].items() if name != "out"},
            **{name: run[name] for name in ("trained_parameters", "cpu_minutes", "provenance")},
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
    print("\n\n".join(tables(found)))
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
