"""All commands, in the order of ``--help``. What a command does is imported when it runs."""

from __future__ import annotations

from .application import app, output_that_may_fail  # first: says it where typer or rich is missing  # isort: skip
from ..study.experiments.calibrate.command import calibrate
from ..study.experiments.cost.command import cost
from ..study.experiments.demo.command import demo
from ..study.experiments.dynamics.command import dynamics
from ..study.experiments.evaluate.command import evaluate
from ..study.experiments.oracle.command import oracle
from ..study.experiments.probe.command import probe
from ..study.experiments.serving.command import serving
from .bench import bench
from .env import env

app.command()(demo)
app.command("eval")(evaluate)
for command in (oracle, probe, dynamics, cost, calibrate, serving):
    app.command()(command)
app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True}, add_help_option=False)(bench)
app.command()(env)


def main() -> None:
    """Entry point of ``affinity-pool``."""
    with output_that_may_fail():
        app()
