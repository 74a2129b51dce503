"""All commands, in the order of ``--help``. What a command does is imported when it runs."""

from __future__ import annotations

from ..study.experiments.calibrate.command import calibrate
from ..study.experiments.cost.command import cost
from ..study.experiments.demo.command import demo
from ..study.experiments.dynamics.command import dynamics
from ..study.experiments.evaluate.command import evaluate
from ..study.experiments.oracle.command import oracle
from ..study.experiments.probe.command import probe
from .application import app, spoken
from .bench import bench
from .env import env

app.command()(demo)
app.command("eval")(evaluate)
for command in (oracle, probe, dynamics, cost, calibrate, bench, env):
    app.command()(command)


def main() -> None:
    """Entry point of ``affinity-pool``."""
    with spoken():
        app()
