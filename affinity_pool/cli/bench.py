"""``affinity-pool bench``: all that follows is for ``python -m affinity_pool.benchmarks``, help too."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import among

CPU_SUITES = ("quick", "target", "headline", "sweep", "counts", "overhead", "instruction-sets")
GPU_SUITES = ("gpu-headline", "gpu", "gpu-sweep")


def bench(
    context: typer.Context,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="A suite, and options; --help has both.", autocompletion=among(*CPU_SUITES, *GPU_SUITES)),
    ] = None,
) -> None:
    """Time the op against copying its input, the paper's loop, vectorised torch and torch.compile."""
    from ..benchmarks.__main__ import main

    main(arguments or [], context.command_path)
