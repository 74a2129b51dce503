"""All cases one after the other; a run can go on, case by case."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

from ....models.settings import Attention, Pooling, sites_json
from ...errors import InputError
from ...runs import folders
from ...runs.results import CostResult, CostSummary, Facts
from ...runs.resume import OneProcess, Resumable
from ...subject.subject import Subject
from .forced import FINAL_RETENTION, INPUT_RETENTION, SPREAD
from .measure import Options, measure
from .prompts import Case


def method(
    subject: Subject, name: str, options: Options, pooling: Pooling | None, attention: Attention = "plain"
) -> Facts:
    """What is measured and how, as JSON: runs of which this is equal can share a folder.

    ``pooling`` None: the weights are random, and the paper's retentions are forced.
    """
    decoder = getattr(subject.config, "text_config", subject.config)
    forced = {"weights": "random", "forced_retention": [INPUT_RETENTION, FINAL_RETENTION], "spread_over_batch": SPREAD}
    return {
        "model": name,
        "parameters": sum(p.numel() for p in subject.model.parameters()),
        "dtype": subject.dtype,
        "device": subject.device.type,
        "implementation": decoder._attn_implementation,
        "rounds": options.rounds,
        "new_tokens": options.new_tokens,
        "idle": options.idle,
        "attention": attention,
        **(forced if pooling is None else {"sites": sites_json(pooling.sites), "positions": pooling.positions}),
    }


def run(
    subject: Subject,
    cases: Iterable[Case],
    options: Options,
    about: Facts,
    given: dict[str, str],
    folder: Path,
    echo: Callable[[str], object] = print,
) -> CostSummary:
    """Measure what is missing of ``cases``, in this process alone; returns what is written to ``summary.json``.

    Args:
        about: of :func:`method`.
        given: digests of the model and the recordings, see :mod:`affinity_pool.study.data.digests`.
        folder: the run's own; each case is kept as soon as it is done.
        echo: is told of each.

    Raises:
        InputError: ``folder`` holds a run measured otherwise, or there is no case.
    """
    wanted = list(cases)
    if not wanted:
        raise InputError("there is nothing to measure: no recording has a length in any of the buckets")
    resumable = Resumable(
        folder,
        {"command": "cost", **about},
        given,
        [[case.name] for case in wanted],
        "name",
        str(subject.device),
        OneProcess(),
    )

    def work(number: int) -> list[CostResult]:
        result = measure(subject, wanted[number], options)
        echo(finding(result))
        told.add(result["name"])
        return [result]

    told: set[str] = set()
    results = cast(list[CostResult], resumable.finish(work))
    for result in results:
        if result["name"] not in told:  # measured before
            echo(finding(result))
    summary: CostSummary = {
        "command": "cost",
        "suite": "cost",
        "provenance": resumable.began(),
        "method": about,
        "results": [_without_rounds(result) for result in results],
    }
    folders.write_json(folder / folders.SUMMARY, summary)
    return summary


def _without_rounds(result: CostResult) -> CostResult:
    return cast(CostResult, {key: value for key, value in result.items() if key != "rounds"})


def finding(result: CostResult) -> str:
    """A case in a sentence."""
    low, high = result["ratio_ci95"]
    said = f"{result['name']}: {result['verdict']}; time to first token, unpooled / pooled {result['ratio']:.3f}"
    said += f" [{low:.3f}, {high:.3f}]"
    if idle := result["idle"]:
        low, high = idle["ratio_ci95"]
        said += f"; where nothing merges, {idle['ratio']:.3f} [{low:.3f}, {high:.3f}]"
    return said
