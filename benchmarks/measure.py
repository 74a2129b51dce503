"""Measuring one case: the contenders are built, checked, timed in turns and described."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .cases import Case, Data, check_output, make_data
from .contenders import CONTENDERS
from .timing import Call, Samples, interleave

COLD_BYTES = 512 << 20  # of inputs that go round, so that none is left in any cache

Record = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """How a suite is run; nothing in ``threads`` or ``contenders`` means the suite's own."""

    device: str = "cpu"
    threads: tuple[int, ...] = ()
    rounds: int = 200
    seconds: float = 1.0
    contenders: tuple[str, ...] = ()
    echo: Callable[[str], None] = print


def measure(case: Case, names: Sequence[str], options: Options) -> Record:
    """Build and check the contenders of a case, then time them: its record in the results file."""
    torch.set_num_threads(case.threads)
    data = make_data(case, options.device)
    pools = {name: CONTENDERS[name](data.rule) for name in names}
    for name, pool in pools.items():
        check_output(name, pool, data)
    calls = {name: Call(pool) for name, pool in pools.items()}
    samples = interleave(calls, inputs_of(case, data), rounds=options.rounds, seconds=options.seconds)
    entries = {name: describe(taken, samples.get("clone"), data.bytes_moved(name)) for name, taken in samples.items()}
    if "ours to a count" in entries and "ours" in entries:
        entries["ours to a count"]["against_ours"] = samples["ours to a count"].against(samples["ours"])
    if "clone" in entries:
        for entry in entries.values():
            entry["percent_of_copy"] = round(100 * entry["gb_per_s"] / entries["clone"]["gb_per_s"], 1)
    options.echo(f"{case}: " + ", ".join(f"{name} {entry['us']['p50']:.0f} us" for name, entry in entries.items()))
    return {"case": asdict(case), "retention_measured": round(data.retention, 4), "contenders": entries}


def inputs_of(case: Case, data: Data) -> list[Tensor]:
    """One input, or as many copies of it as no cache holds."""
    copies = -(-COLD_BYTES // (data.x.numel() * data.x.element_size())) if case.cache == "cold" else 1
    return [data.x, *(data.x.clone() for _ in range(copies - 1))]


def describe(taken: Samples, copy: Samples | None, moved: int | None = None) -> Record:
    entry: Record = {
        "us": taken.per_call(),
        "samples": len(taken.seconds),
        "calls_per_sample": taken.calls_per_sample,
        "page_faults_per_call": taken.page_faults_per_call(),
    }
    if copy is not None:
        entry["against_clone"] = taken.against(copy)
    if moved is not None:
        entry["bytes_moved"] = moved
        entry["gb_per_s"] = round(moved / entry["us"]["p50"] / 1e3, 3)
    return entry


def measure_all(plan: Iterable[tuple[Case, Sequence[str]]], options: Options) -> Iterable[Record]:
    for case, names in plan:
        if options.threads and case.threads not in options.threads:
            continue
        yield measure(case, [n for n in names if not options.contenders or n in options.contenders], options)
