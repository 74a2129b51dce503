"""The command line: a module for each command, holding its options and help and nothing else.

What a command does is in a module of its own under ``affinity_pool``, imported when the command runs. To add one, write
a module with a function that imports its work inside ``explained()``, and name it below, in the order of ``--help``.
"""

from __future__ import annotations

from .application import app, spoken  # first: says it where typer or rich is missing  # isort: skip
from . import demo, evaluate, oracle, probe, dynamics, cost, calibrate, bench, env  # noqa: F401  # isort: skip


def main() -> None:
    """Entry point of ``affinity-pool``."""
    with spoken():
        app()


__all__ = ["app", "main"]
