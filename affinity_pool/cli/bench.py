"""``affinity-pool bench``: all that follows is for ``python -m affinity_pool.benchmarks``, help too."""

from __future__ import annotations

import typer


def bench(context: typer.Context) -> None:
    """Time the op against copying its input, the paper's loop, vectorised torch and torch.compile."""
    from ..benchmarks.__main__ import main

    main(context.args, "affinity-pool bench")
