"""``affinity-pool bench``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .application import console, explained
from .options import Device


def bench(
    suite: Annotated[
        str | None,
        typer.Argument(
            help="headline, target, sweep, overhead or instruction-sets; on a GPU gpu, gpu-headline or gpu-sweep. The "
            "first if left out. See benchmarks/README.md."
        ),
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option(min=1, help="Only cases with this many threads; repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Results file to write (JSON).")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of every contender.")] = 200,
    seconds: Annotated[float, typer.Option(help="About how long one contender may take in one case.")] = 1.0,
    device: Device = None,
) -> None:
    """Time the op against copying its input, the paper's loop, vectorised torch and torch.compile.

    Every output is checked against the reference first; a wrong one is never timed.
    """
    with explained():
        from ..bench import SUITES, run
        from ..bench.table import render
        from ..study.subject.devices import usable_device

        device = usable_device(device)
        suite = suite or ("gpu" if device.startswith("cuda") else "headline")
        if suite not in SUITES:
            raise typer.BadParameter(f"{suite!r} is not one of {', '.join(SUITES)}", param_hint="suite")
        results = run(
            suite,
            threads or (),
            out,
            rounds,
            seconds=seconds,
            device=device,
            echo=lambda line: console.print(line, soft_wrap=True, style="dim"),
        )
        console.print(render(results), soft_wrap=True)
