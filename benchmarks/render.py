"""Results files as Markdown, and the copies of their tables that documents hold.

    python -m affinity_pool.benchmarks.render FILE.json ...              print their tables
    python -m affinity_pool.benchmarks.render docs/costs.md [--check]    renew its tables, or tell if they are right

A document may lie anywhere in the repository. A block of it between ``<!-- bench:PATH -->`` and ``<!-- /bench -->``
holds the table of ``benchmarks/results/PATH.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path
from typing import Any

from . import tables, wheels

BLOCK = re.compile(r"(<!-- bench:(?P<path>\S+) -->\n).*?(<!-- /bench -->)", re.DOTALL)
RESULTS = Path("benchmarks/results")
PROGRAM = "python -m affinity_pool.benchmarks.render"


def render(results: Any, source: str | None = None) -> str:
    """The table of a results file, of a suite or of ``affinity-pool cost``, and where its numbers come from."""
    if results["suite"] == "cost":
        # Not above: suites are rendered where what the study needs is not installed.
        from affinity_pool.study.experiments.cost import table

        return table.render(results, source)
    if results["suite"] == "wheel":
        return wheels.render(results, source)
    return tables.render(results, source)


def refresh(document: Path) -> str:
    """The text of a document, with each marked block replaced by the table of its results file."""
    folder = document.resolve().parent
    results = root_of(folder) / RESULTS

    def block(match: re.Match[str]) -> str:
        path = results / f"{match['path']}.json"
        source = Path(os.path.relpath(path, folder)).as_posix()
        return f"{match[1]}{render(json.loads(path.read_text()), source)}{match[3]}"

    return BLOCK.sub(block, document.read_text())


def root_of(folder: Path) -> Path:
    """The folder itself, or one that it is in, that has the results."""
    for root in (folder, *folder.parents):
        if (root / RESULTS).is_dir():
            return root
    raise SystemExit(f"{folder} is in no folder that has {RESULTS}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=Path, help="a Markdown file to renew, or results files to print")
    parser.add_argument("--check", action="store_true", help="change nothing, fail if a block is not up to date")
    options = parser.parse_args(arguments)
    for path in options.files:
        if path.suffix == ".json":
            print(render(json.loads(path.read_text()), path.as_posix()))
            continue
        renewed = refresh(path)
        if options.check and renewed != path.read_text():
            raise SystemExit(f"{path} is not what its results say: run {PROGRAM} {path}")
        if not options.check:
            path.write_text(renewed)


if __name__ == "__main__":
    main()
