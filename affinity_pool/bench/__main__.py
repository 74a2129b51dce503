"""``python -m affinity_pool.bench SUITE``: measure a suite, print its table, keep its results if told where."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from . import CONTENDERS, SUITES, run
from .table import render


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m affinity_pool.bench", description=__doc__)
    parser.add_argument("suite", nargs="?", default="headline", choices=SUITES)
    parser.add_argument(
        "--threads", type=int, action="append", default=[], help="only cases with this many; repeatable"
    )
    parser.add_argument("--out", type=Path, help="results file to write (JSON)")
    parser.add_argument("--rounds", type=int, default=200, help="turns of every contender")
    parser.add_argument("--seconds", type=float, default=1.0, help="about how long one contender may take in one case")
    parser.add_argument("--contenders", nargs="+", default=[], choices=CONTENDERS, help="only these")
    parser.add_argument("--device", default="cpu")
    options = vars(parser.parse_args(arguments))
    print(render(run(**options, echo=partial(print, file=sys.stderr, flush=True))))


if __name__ == "__main__":
    main()
