"""The table of each suite, from its results file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from . import gpu
from .cpu import SWEEP_BASE, SWEEPS
from .markdown import markdown, origin

Record = dict[str, Any]
OTHERS = ("torch.compile", "vectorised", "paper's loop")


def render(results: Record, source: str | None = None) -> str:
    """The table of a results file, and a line on where its numbers come from."""
    return f"{TABLES[results['suite']](results['results'])}\n\n{origin(results, source)}\n"


def quick_table(records: Sequence[Record]) -> str:
    """Contenders that were not asked for have no time."""
    rows = []
    for r in records:
        others = [factor(r, name, "{:.0f}x") for name in OTHERS]
        rows.append([*shape(r), str(r["case"]["window"]), *ours_and_clone(r), *others])
    titles = ["T", "dtype", "window", "clone", "ours", "ours / clone", "GB/s, % of copy's"]
    return markdown([*titles, *(f"{name} / ours" for name in OTHERS)], rows)


def target_table(records: Sequence[Record]) -> str:
    rows = [[*shape(r), *ours_and_clone(r)] for r in records]
    return markdown(["T", "dtype", "clone", "ours", "ours / clone", "GB/s, % of copy's"], rows)


def headline_table(records: Sequence[Record]) -> str:
    crowd = [r for r in records if any(name in r["contenders"] for name in OTHERS)]
    pairs = {key(r): r for r in records if r not in crowd}
    rows = []
    for r in crowd:
        warm, cold = (pairs.get(key(r, cache=cache)) for cache in ("warm", "cold"))
        ours = [time(r, "ours"), *(against(x, "ours") if x else "" for x in (warm, cold)), against(r, "ours")]
        rows.append([str(r["case"]["threads"]), *shape(r), *ours, *(factor(r, name, "{:.0f}x") for name in OTHERS)])
    caches = ("x in cache", "x in memory", "nothing in cache")
    titles = ["threads", "T", "dtype", "ours", *(f"ours / clone, {cache}" for cache in caches)]
    return markdown([*titles, *(f"{name} / ours" for name in OTHERS)], rows)


def sweep_table(records: Sequence[Record]) -> str:
    by_case = {key(r): r for r in records}
    rows = []
    for parameter, values in SWEEPS.items():
        for value in values:
            row = [parameter, str(value)]
            for dtype in ("float32", "bfloat16"):
                case = {**vars(SWEEP_BASE), "dtype": dtype, parameter: value}
                r = by_case.get(tuple(case.items()))
                row += [time(r, "ours"), against(r, "ours"), factor(r, "vectorised", "{:.1f}")] if r else [""] * 3
            rows.append(row)
    titles = [
        f"{dtype}: {what}" for dtype in ("float32", "bfloat16") for what in ("ours", "/ clone", "vectorised / ours")
    ]
    return markdown(["", "", *titles], rows)


def counts_table(records: Sequence[Record]) -> str:
    rows = []
    for r in records:
        counted = r["contenders"].get("ours to a count", {})
        ratio = counted.get("against_ours")
        interval = f"**{ratio['p50']:.2f}**" if ratio else ""
        if ratio and ratio["ci95"]:
            interval += " [{:.2f}, {:.2f}]".format(*ratio["ci95"])
        times = [time(r, name) for name in ("clone", "ours", "ours to a count", "torch to a count")]
        rows.append([str(r["case"]["threads"]), *shape(r), f"{r['case']['retention']:.0%}", *times, interval])
    titles = ["threads", "T", "dtype", "left", "clone", "`pool`, window 1", "`pool_to`", "torch", "`pool_to` / `pool`"]
    return markdown(titles, rows)


def overhead_table(records: Sequence[Record]) -> str:
    rows = [[r["call"], f"{r['us']['p50']:.2f} us", f"{r['against_add']['p50']:.1f}"] for r in records]
    return markdown(["a call on [1, 64] float32", "time", "/ torch.add"], rows)


def instruction_set_table(records: Sequence[Record]) -> str:
    sets = list(dict.fromkeys(r["instruction_set"] for r in records))
    shapes = list(dict.fromkeys(key(r) for r in records))
    found = {(r["instruction_set"], key(r)): r for r in records}
    rows = []
    for case in shapes:
        some = [found.get((name, case)) for name in sets]
        row = shape(next(r for r in some if r))
        rows.append(row + [f"{time(r, 'ours')}, {against(r, 'ours')}" if r else "" for r in some])
    return markdown(["T", "dtype", *(f"{name}: ours, / clone" for name in sets)], rows)


def gpu_table(records: Sequence[Record]) -> str:
    """The kernel against a copy, in cache and not; what a caller waits for, against what torch can do."""
    warm = {key(r): r for r in records if r["case"]["cache"] == "warm"}
    rows = []
    for r in records:
        if r["case"]["cache"] == "warm":
            continue
        pair = warm.get(key(r, cache="warm"))
        in_cache = [form_time(pair, "ours"), form_against(pair, "ours")] if pair else ["", ""]
        kernel = [form_time(r, "clone"), form_time(r, "ours"), form_against(r, "ours"), percent_of_copy(r, "ours")]
        whole = [form_time(r, "ours", "eager"), form_time(r, "ours", "whole")]
        rest = [
            form_factor(r, "ours to a count", "graph", "{:.2f}x"),
            form_factor(r, "triton", "graph", "{:.1f}x"),
            *(form_factor(r, n, "whole", "{:.0f}x") for n in OTHERS),
        ]
        rows.append([*shape(r), *kernel, *in_cache, *whole, *rest])
    titles = ["T", "dtype", "clone", "ours", "/ clone", "% of copy", "x in cache: ours", "/ clone", "eager", "`pool`"]
    return markdown([*titles, *(f"{name} / ours" for name in ("ours to a count", "triton", *OTHERS))], rows)


def gpu_sweep_table(records: Sequence[Record]) -> str:
    by_case = {key(r): r for r in records}
    rows = []

    def row(what: str, value: str, cases: Sequence[Record]) -> None:
        found = [by_case.get(tuple(case.items())) for case in cases]
        cells = [
            [form_time(r, "ours"), form_against(r, "ours"), percent_of_copy(r, "ours"), form_factor(r, "triton")]
            if r
            else [""] * 4
            for r in found
        ]
        if any(found):
            rows.append([what, value, *(cell for some in cells for cell in some)])

    for parameter, values in gpu.SWEEPS.items():
        for value in values:
            case = {**vars(gpu.BASE), parameter: value}
            row(parameter, str(value), [{**case, "dtype": dtype} for dtype in ("bfloat16", "float32")])
    for corner in gpu.CORNERS:
        row("corner", f"[{corner.tokens}, {corner.dim}] {corner.dtype}", [vars(corner)])
    titles = [
        f"{dtype}: {what}"
        for dtype in ("bfloat16", "float32")
        for what in ("ours", "/ clone", "% of copy", "triton / ours")
    ]
    return markdown(["", "", *titles], [[*r, *[""] * (len(titles) + 2 - len(r))] for r in rows])


TABLES: dict[str, Callable[[Sequence[Record]], str]] = {
    "quick": quick_table,
    "target": target_table,
    "headline": headline_table,
    "sweep": sweep_table,
    "counts": counts_table,
    "overhead": overhead_table,
    "instruction-sets": instruction_set_table,
    "gpu-headline": gpu_table,
    "gpu": gpu_table,
    "gpu-sweep": gpu_sweep_table,
}


def key(record: Record, **changes: Any) -> tuple[tuple[str, Any], ...]:
    return tuple({**record["case"], **changes}.items())


def shape(record: Record) -> list[str]:
    return [str(record["case"]["tokens"]), record["case"]["dtype"]]


def ours_and_clone(record: Record) -> list[str]:
    entry = record["contenders"].get("ours", {})
    speed = f"{entry['gb_per_s']:.0f}, {entry['percent_of_copy']:.0f} %" if "percent_of_copy" in entry else ""
    return [time(record, "clone"), time(record, "ours"), against(record, "ours"), speed]


def time(record: Record, name: str) -> str:
    entry = record["contenders"].get(name)
    return spoken(entry["us"]["p50"]) if entry else ""


def spoken(us: float) -> str:
    return f"{us / 1e3:.3g} ms" if us >= 100 else f"{us:.3g} us"


def against(record: Record, name: str) -> str:
    ratio = record["contenders"].get(name, {}).get("against_clone")
    return f"**{ratio['p50']:.2f}**" if ratio else ""


def factor(record: Record, name: str, form: str = ", {:.0f}x") -> str:
    """How many times as long as ours."""
    entries = record["contenders"]
    if name not in entries or "ours" not in entries:
        return ""
    return form.format(entries[name]["us"]["p50"] / entries["ours"]["us"]["p50"])


def form(record: Record, name: str, way: str) -> Record | None:
    """What a contender of a GPU suite took, one way of timing it."""
    entry: Record | None = record["contenders"].get(name, {}).get(way)
    return entry


def form_time(record: Record, name: str, way: str = "graph") -> str:
    entry = form(record, name, way)
    return spoken(entry["us"]["p50"]) if entry else ""


def form_against(record: Record, name: str, way: str = "graph") -> str:
    entry = form(record, name, way)
    return f"**{entry['against_clone']['p50']:.2f}**" if entry and "against_clone" in entry else ""


def percent_of_copy(record: Record, name: str, way: str = "graph") -> str:
    entry = form(record, name, way)
    return f"{entry['percent_of_copy']:.0f} %" if entry and "percent_of_copy" in entry else ""


def form_factor(record: Record, name: str, way: str = "graph", shown: str = "{:.1f}") -> str:
    if name in record.get("failed", {}):
        return "failed"
    entry, ours = form(record, name, way), form(record, "ours", way)
    return shown.format(entry["us"]["p50"] / ours["us"]["p50"]) if entry and ours else ""
