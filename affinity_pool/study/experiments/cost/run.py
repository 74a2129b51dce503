"""All cases one after the other: each is a line of ``results.jsonl`` as soon as it is done, and a run can go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ....provenance import provenance
from ...errors import InputError
from ...runs import folders
from .forced import FINAL_RETENTION, INPUT_RETENTION, SPREAD
from .measure import Options, Record, measure
from .prompts import Case, Pooling


def method(model: Any, name: str, options: Options, pooling: Pooling | None) -> Record:
    """What is measured and how, as JSON: runs of which this is equal can share a folder.

    ``pooling`` None: the weights are random, and the paper's retentions are forced.
    """
    decoder = getattr(model.config, "text_config", model.config)
    forced = {"weights": "random", "forced_retention": [INPUT_RETENTION, FINAL_RETENTION], "spread_over_batch": SPREAD}
    return {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "attention": decoder._attn_implementation,
        "rounds": options.rounds,
        "new_tokens": options.new_tokens,
        "idle": options.idle,
        **(forced if pooling is None else {"sites": described(pooling), "positions": pooling.positions}),
    }


def described(pooling: Pooling) -> list[Record]:
    """Sites as JSON."""
    return [{"layer": site.layer, "threshold": site.threshold, "window": site.window} for site in pooling.sites]


def run(
    model: Any,
    cases: Iterable[Case],
    options: Options,
    about: Record,
    given: dict[str, str],
    folder: Path,
    echo: Callable[[str], object] = print,
) -> Record:
    """Measure what is missing of ``cases``; returns what is written to ``summary.json``.

    Args:
        about: of :func:`method`.
        given: digests of the model and the recordings, see :mod:`..identity`.
        folder: the run's own; ``results.jsonl`` grows by each case as it is done.
        echo: is told of each.

    Raises:
        InputError: ``folder`` holds a run measured otherwise, or there is no case.
    """
    done = _open(folder, json.loads(json.dumps(about)), given)
    origin = provenance(str(model.device))  # before the load that comes from here
    found = []
    for case in cases:
        if case.name not in done:
            record = {"name": case.name, **measure(model, case, options)}
            file = folder / "results.jsonl"
            with folders.writing(file, folders.GOES_ON), file.open("a", encoding="utf-8", newline="\n") as results:
                results.write(folders.dumps(record) + "\n")
            done[case.name] = record
        found.append(done[case.name])
        echo(finding(done[case.name]))
    if not found:
        raise InputError("there is nothing to measure: no recording has a length in any of the buckets")
    summary = {
        "command": "cost",
        "suite": "cost",
        "provenance": origin,
        "method": about,
        "results": [_without_rounds(record) for record in found],
    }
    folders.write_json(folder / folders.SUMMARY, summary)
    return summary


def _without_rounds(record: Record) -> Record:
    return {key: value for key, value in record.items() if key != "rounds"}


def finding(record: Record) -> str:
    """A case in a sentence."""
    low, high = record["ratio_ci95"]
    said = f"{record['name']}: {record['verdict']}; time to first token, unpooled / pooled {record['ratio']:.3f}"
    said += f" [{low:.3f}, {high:.3f}]"
    if record["idle"]:
        low, high = record["idle"]["ratio_ci95"]
        said += f"; where nothing merges, {record['idle']['ratio']:.3f} [{low:.3f}, {high:.3f}]"
    return said


def _open(folder: Path, about: Record, given: dict[str, str]) -> dict[str, Record]:
    """Take a folder for this run, or find what is done of it, by name."""
    about = {"command": "cost", **about}
    folders.take(folder, "cost")
    results = folder / "results.jsonl"
    if not folders.is_begun(folder, about, given):
        folders.write(results, "")
        folders.begin(folder, about, given)
        return {}
    done = {record["name"]: record for record in folders.read_lines(results) if _is_whole(record)}
    folders.write(results, "".join(folders.dumps(record) + "\n" for record in done.values()))  # without a cut line
    return done


def _is_whole(record: Any) -> bool:
    return isinstance(record, dict) and {"name", "verdict", "ratio", "ratio_ci95", "idle"} <= set(record)
