"""The suites for a GPU: what the kernels cost, what launching them costs, and what a caller waits for.

Each contender is timed in up to three ways, which answer three questions:

    graph   the padded op replayed from a CUDA graph: the device's work alone. The kernel's cost
    eager   the padded op called from Python, many in a row: where the host cannot launch fast enough, its cost
    whole   ``[N, D]`` to ``[M, D]`` from an idle device to an idle device: with the round trip that M takes

Contenders without fixed shapes (torch.compile, vectorised, the paper's loop) wait for the device midway and are timed
``whole`` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

import affinity_pool

from .cases import Case, Data, WrongOutputError, check_output, check_padded, check_values, make_data
from .contenders import CONTENDERS, PADDED
from .measure import Options, Record, describe, inputs_of
from .timing import Call, Samples, captured, interleave

FORMS = ("graph", "eager", "whole")
FAST = ("clone", "ours", "ours to a count", "triton")
WARM_GRAPH = 20  # calls in a graph that has one input; with many it has one call for each

HEADLINE = ((750, "cold"), (65536, "cold"), (750, "warm"))
BASE = Case(1500, dtype="bfloat16", cache="cold")
CORNERS = (replace(BASE, dtype="float16"), replace(BASE, tokens=64, dim=512), replace(BASE, tokens=65536, dim=8192))
SWEEPS: dict[str, Sequence[Any]] = {
    "tokens": (64, 256, 750, 1500, 4096, 16384, 65536),
    "dim": (512, 1024, 2048, 4096, 8192),
    "window": (1, 3, 8, 32),
    "batch": (1, 4, 16),
    "retention": (0.15, 0.4, 0.8, 1.0),
}


def headline(options: Options) -> Iterable[Record]:
    """What is asked first, in seconds: 30 s of Qwen2-Audio in cache and not, and half a gigabyte at once; bfloat16."""
    cases = [Case(tokens, dtype="bfloat16", cache=cache) for tokens, cache in HEADLINE]
    return measure_all([(case, FAST) for case in cases], options)


def contenders(options: Options) -> Iterable[Record]:
    """30 and 60 s of Qwen2-Audio in every dtype, x in cache and in memory, and half a gigabyte or more at once."""
    plan: list[tuple[Case, Sequence[str]]] = []
    for tokens in (750, 1500):
        for dtype in ("bfloat16", "float16", "float32"):
            warm = Case(tokens, dtype=dtype)
            plan += [(warm, FAST), (replace(warm, cache="cold"), tuple(CONTENDERS))]
    plan += [(Case(65536, dtype=dtype, cache="cold"), FAST) for dtype in ("bfloat16", "float32")]
    return measure_all(plan, options)


def sweep(options: Options) -> Iterable[Record]:
    """One parameter at a time from 1500 tokens of 4096, window 3, retention 0.4, x in memory; then the corners."""
    bases = [replace(BASE, dtype=dtype) for dtype in ("bfloat16", "float32")]
    cases = [replace(base, **{name: v}) for name, values in SWEEPS.items() for base in bases for v in values]
    return measure_all([(case, FAST) for case in dict.fromkeys([*cases, *CORNERS])], options)


def check_device(device: str) -> None:
    """Raise ValueError for one that these suites cannot time."""
    if not device.startswith("cuda"):
        raise ValueError(f"this suite times a GPU: device must be cuda, got {device!r}")


def measure_all(plan: Iterable[tuple[Case, Sequence[str]]], options: Options) -> Iterable[Record]:
    check_device(options.device)
    with affinity_pool.use("cuda"):
        for case, names in plan:
            yield measure(case, [n for n in names if not options.contenders or n in options.contenders], options)


def measure(case: Case, names: Sequence[str], options: Options) -> Record:
    """Build and check every form of every contender, then time them all in turns: the case's record.

    A contender that others wrote the pieces of (torch.compile and so on) may fail to run here: that is recorded, and
    the others are timed. A wrong output is still the end of the suite, and so is a failure of ours.
    """
    data = make_data(case, options.device)
    inputs = inputs_of(case, data)
    calls: dict[tuple[str, str], Call] = {}
    failed: dict[str, str] = {}
    for name in names:
        try:
            calls |= {(name, form): call for form, call in forms(name, data, inputs)}
        except WrongOutputError:
            raise
        except Exception as error:
            if name == "clone" or name.startswith("ours"):
                raise
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    samples = interleave(calls, inputs, rounds=options.rounds, seconds=options.seconds)
    entries = {name: entry for name in names if (entry := describe_forms(name, data, samples))}
    options.echo(f"{case}: {', '.join(map(spoken, entries.items()))}" + "".join(f"; {n} FAILED" for n in failed))
    record = {"case": asdict(case), "retention_measured": round(data.retention, 4), "contenders": entries}
    return {**record, "failed": failed} if failed else record


def forms(name: str, data: Data, inputs: list[Tensor]) -> Iterable[tuple[str, Call]]:
    """The ways this contender is timed, each once its output has been checked."""
    pool = CONTENDERS[name](data.rule)
    check_output(name, pool, data)
    yield "whole", Call(pool, waits=True)
    fixed: Callable[[Tensor], Any] | None = pool if name == "clone" else None
    if name in PADDED:
        fixed = PADDED[name](data.rule)
    if fixed is None:
        return
    with torch.inference_mode():
        check_fixed(name, fixed(data.x), data)
    yield "eager", Call(fixed)
    if data.x.is_cuda:
        graph, result = captured(fixed, inputs, len(inputs) if len(inputs) > 1 else WARM_GRAPH)
        with torch.inference_mode():
            (result if name == "clone" else result.values).fill_(torch.nan)
            graph.function(data.x)
            check_fixed(name, result, data)
        yield "graph", graph


def check_fixed(name: str, result: Any, data: Data) -> None:
    if name == "clone":
        check_values(name, result, data)
    else:
        check_padded(name, result, data)


def describe_forms(name: str, data: Data, samples: dict[tuple[str, str], Samples]) -> Record:
    entry: Record = {}
    for form in FORMS:
        if (name, form) not in samples:
            continue
        copy = samples.get(("clone", form))
        moved = data.bytes_moved(name, padded=form != "whole")
        entry[form] = describe(samples[name, form], copy, moved)
        del entry[form]["page_faults_per_call"]  # of the host, whose memory is not what is measured
        if copy is not None:
            copied = data.bytes_moved("clone") / copy.per_call()["p50"] / 1e3
            entry[form]["percent_of_copy"] = round(100 * entry[form]["gb_per_s"] / copied, 1)
    return entry


def spoken(item: tuple[str, Record]) -> str:
    name, entry = item
    return f"{name} " + " / ".join(f"{entry[form]['us']['p50']:.1f}" for form in FORMS if form in entry) + " us"
