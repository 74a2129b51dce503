"""Markdown tables from results files, and README's copies of them.

A block of README between ``<!-- bench:PATH -->`` and ``<!-- /bench -->`` holds the table of
``benchmarks/results/PATH.json``. ``python -m affinity_pool.bench.table README.md`` renews every block, with ``--check``
it only tells whether they are as they should be; given results files it prints their tables.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .sweep import SWEEP_BASE, SWEEPS

Record = dict[str, Any]
BLOCK = re.compile(r"(<!-- bench:(?P<path>\S+) -->\n).*?(<!-- /bench -->)", re.DOTALL)
RESULTS = Path("benchmarks/results")


def render(results: Record, source: str | None = None) -> str:
    """The table of a results file, and a line on where its numbers come from."""
    return f"{TABLES[results['suite']](results['results'])}\n\n{origin(results, source)}\n"


def refresh(text: str, root: Path) -> str:
    """``text`` with each marked block replaced by the table of its results file, below ``root``."""

    def block(match: re.Match[str]) -> str:
        path = RESULTS / f"{match['path']}.json"
        return f"{match[1]}{render(json.loads((root / path).read_text()), path.as_posix())}{match[3]}"

    return BLOCK.sub(block, text)


def origin(results: Record, source: str | None) -> str:
    p = results["provenance"]
    commit = (p["commit"] or "no commit")[:10] + (" and changes" if p["uncommitted"] else "")
    facts = [
        p["device"],
        f"{p['cores']} cores",
        *([] if results["suite"] == "instruction-sets" else [p["backends"]["cpu"]]),
        f"torch {p['versions']['torch']}",
        f"commit {commit}",
        p["date"][:10],
        f"medians of up to {results['method']['rounds']} interleaved rounds",
    ]
    return f"{', '.join(facts)}" + (f": [{source}]({source})" if source else "") + "."


def target_table(records: Sequence[Record]) -> str:
    rows = [[*shape(r), *ours_and_clone(r)] for r in records]
    return markdown(["T", "dtype", "clone", "ours", "ours / clone", "GB/s, % of copy's"], rows)


def headline_table(records: Sequence[Record]) -> str:
    others = ("torch.compile", "vectorised", "paper's loop")
    crowd = [r for r in records if any(name in r["contenders"] for name in others)]
    pairs = {key(r): r for r in records if r not in crowd}
    rows = []
    for r in crowd:
        warm, cold = (pairs.get(key(r, cache=cache)) for cache in ("warm", "cold"))
        ours = [time(r, "ours"), *(against(x, "ours") if x else "" for x in (warm, cold)), against(r, "ours")]
        rows.append([str(r["case"]["threads"]), *shape(r), *ours, *(factor(r, name, "{:.0f}x") for name in others)])
    titles = ["threads", "T", "dtype", "ours", "/ clone, x in cache", "x in memory", "nothing in cache"]
    return markdown([*titles, *(f"{name} / ours" for name in others)], rows)


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


TABLES: dict[str, Callable[[Sequence[Record]], str]] = {
    "target": target_table,
    "headline": headline_table,
    "sweep": sweep_table,
    "overhead": overhead_table,
    "instruction-sets": instruction_set_table,
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
    if entry is None:
        return ""
    us = entry["us"]["p50"]
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


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m affinity_pool.bench.table", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="a Markdown file to renew, or results files to print")
    parser.add_argument("--check", action="store_true", help="change nothing, fail if a block is not up to date")
    options = parser.parse_args(arguments)
    for path in options.files:
        if path.suffix == ".json":
            print(render(json.loads(path.read_text()), path.as_posix()))
            continue
        text = path.read_text()
        renewed = refresh(text, path.resolve().parent)
        if options.check and renewed != text:
            raise SystemExit(f"{path} is not what its results say: run python -m affinity_pool.bench.table {path}")
        if not options.check:
            path.write_text(renewed)


if __name__ == "__main__":
    main()
