"""The application that the commands register with, and what all of them share."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Annotated, TextIO

from .. import __version__

try:
    import typer
    from rich.console import Console
except ModuleNotFoundError as error:
    raise SystemExit(f"affinity-pool needs {error.name}: pip install 'affinity_pool[cli]'") from error

app: typer.Typer = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
console: Console = Console(highlight=False, markup=False, emoji=False)  # what is printed is text, names and errors too


def print_versions(asked: bool) -> None:
    """Of this package and of torch, which is not imported for it."""
    if asked:
        try:
            torch = f"torch {version('torch')}"
        except PackageNotFoundError:  # built in its source tree
            torch = "torch of no known version"
        console.print(f"affinity-pool {__version__} ({torch})")
        raise typer.Exit


@app.callback()
def affinity_pool(
    _: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=print_versions, is_eager=True)
    ] = False,
) -> None:
    """Affinity Pooling: fewer audio tokens in speech language models, without training."""


@contextmanager
def errors_in_words() -> Iterator[None]:
    """End with a sentence, not a traceback, where an extra is missing or the user's input cannot be used."""
    try:
        from ..study.errors import InputError

        try:
            yield
        except InputError as error:
            console.print(f"Error: {error}", style="red")
            raise typer.Exit(2) from error
    except ImportError as error:
        missing = error.name or getattr(error.__cause__, "name", None)  # affinity_pool.models explains in its own words
        if missing is None or missing.startswith("affinity_pool"):
            raise
        missing = missing.partition(".")[0]
        console.print(f"Error: this command needs {missing}: pip install {extra_that_has(missing)}", style="red")
        raise typer.Exit(1) from error


def extra_that_has(package: str) -> str:
    """What to install for a package: the extra that contains it, else the package."""
    try:
        wanted = requires("affinity_pool") or []
    except PackageNotFoundError:  # a checkout on the path
        wanted = []
    extras = []
    for requirement in wanted:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0].replace("-", "_")
        if name == package and (extra := re.search(r"extra == ['\"](\w+)['\"]", requirement)):
            extras.append(extra[1])
    if "models" in extras:
        return "'affinity_pool[study]'"  # which has those of models, and all else that a command needs
    return f"'affinity_pool[{extras[0]}]'" if extras else package


@contextmanager
def output_that_may_fail() -> Iterator[None]:
    """End without a traceback where nobody listens: a pipe that was closed, a full device, an output of ASCII alone."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _silence(sys.stdout)
        raise SystemExit(1) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EPIPE):
            raise
        _silence(sys.stdout)
        sys.stderr.write(f"Error: cannot write the output: {error.strerror}\n")
        raise SystemExit(1) from None


def _silence(stream: TextIO) -> None:
    """What is left in its buffer goes nowhere, instead of raising again when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
