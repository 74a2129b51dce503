"""The application that the commands register with, and what all of them share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

try:
    import typer
    from rich.console import Console
except ModuleNotFoundError as error:
    raise SystemExit(f"affinity-pool needs {error.name}: pip install 'affinity_pool[study]'") from error

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console(highlight=False)


@app.callback()
def affinity_pool() -> None:
    """Affinity Pooling: fewer audio tokens in speech language models, without training."""


@contextmanager
def explained() -> Iterator[None]:
    """End with a sentence, not a traceback, where an extra is missing or the user's input cannot be used."""
    try:
        from ..study import InputError

        try:
            yield
        except InputError as error:
            console.print(f"Error: {error}", style="red", markup=False)
            raise typer.Exit(2) from error
    except ImportError as error:
        missing = error.name or getattr(error.__cause__, "name", None)  # affinity_pool.models explains in its own words
        if missing is None or missing.startswith("affinity_pool"):
            raise
        message = f"Error: this command needs {missing.partition('.')[0]}: pip install 'affinity_pool[study]'"
        console.print(message, style="red", markup=False)
        raise typer.Exit(1) from error


def accelerator() -> str:
    """``cuda`` where there is a GPU, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
