"""``python -m affinity_pool.benchmarks SUITE``, or ``affinity-pool bench SUITE``. Needs torch alone."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from affinity_pool.devices import accelerator, check_device

from . import gpu
from .contenders import CONTENDERS
from .suites import GPU_SUITES, SUITES, run
from .tables import render

DESCRIPTION = """\
Time the op against copying its input, the paper's loop, vectorised torch and torch.compile. Every output is checked
against the reference first; a wrong one is never timed. Prints the suite's table, and keeps the results if told where.

suites:
"""


def main(arguments: Sequence[str] | None = None, program: str = "python -m affinity_pool.benchmarks") -> None:
    """Measure a suite, print its table. SystemExit, with a sentence, where an argument cannot be used."""
    parser = parser_for(program)
    options = parser.parse_args(arguments)
    try:
        suite, device = choose(options.suite, options.device)
    except ValueError as error:
        parser.error(str(error))
    results = run(
        suite,
        options.threads,
        options.out,
        options.rounds,
        seconds=options.seconds,
        contenders=options.contenders,
        device=device,
        echo=partial(print, file=sys.stderr, flush=True),
    )
    print(render(results))


def parser_for(program: str) -> argparse.ArgumentParser:
    suites = [f"  {name:<18}{(suite.__doc__ or '').splitlines()[0]}" for name, suite in SUITES.items()]
    parser = argparse.ArgumentParser(
        prog=program,
        description=DESCRIPTION + "\n".join(suites),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("suite", nargs="?", choices=SUITES, metavar="suite", help="headline if left out, on a GPU gpu")
    parser.add_argument(
        "--threads", type=count, action="append", default=[], help="only cases with this many; repeatable"
    )
    parser.add_argument("--out", type=Path, help="results file to write (JSON)")
    parser.add_argument("--rounds", type=count, default=200, help="turns of every contender (200)")
    parser.add_argument("--seconds", type=duration, default=1.0, help="about how long one may take in one case (1.0)")
    parser.add_argument(
        "--contenders",
        nargs="+",
        default=[],
        choices=CONTENDERS,
        metavar="NAME",
        help=f"only these of {', '.join(CONTENDERS)}",
    )
    parser.add_argument("--device", help="cpu, cuda, ...; the suite's own, or a GPU if there is one, if left out")
    return parser


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text!r}")
    return value


def duration(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, got {text!r}")
    return value


def choose(suite: str | None, device: str | None) -> tuple[str, str]:
    """What was asked for, and for what was not: a suite goes with its device, a device with its suite.

    Raises:
        ValueError: the device is not here, or not one that the suite can time.
    """
    if device is None:
        device = accelerator() if suite is None else "cuda" if suite in GPU_SUITES else "cpu"
    suite = suite or ("gpu" if device.startswith("cuda") else "headline")
    if suite in GPU_SUITES:
        gpu.check_device(device)
    check_device(device)
    return suite, device


if __name__ == "__main__":
    main()
