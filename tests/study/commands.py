"""A command of the command line, called in this process."""

from __future__ import annotations

from typer.testing import CliRunner

from affinity_pool.cli.commands import app


def invoke(*arguments: object) -> tuple[int, str]:
    """Its exit code, and what it printed as words with a space between; what it raises is raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())
