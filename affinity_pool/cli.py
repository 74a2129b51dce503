"""The command line: what each command takes. What it does is in a module of its own, imported when the command runs.

To add a command, write a function here that holds its options and help, and imports its work inside ``explained()``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

try:
    import typer
    from rich.console import Console
    from rich.table import Table
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
        from .study import InputError

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


@app.command()
def demo(
    audio: Annotated[
        list[Path] | None, typer.Option(help="Recording to use instead of the bundled ones; repeat for more.")
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="Reference text for the WER, one for each --audio.")] = None,
    data: Annotated[Path | None, typer.Option(help="Manifest (JSON lines) to use instead of the bundled one.")] = None,
    model: Annotated[str | None, typer.Option(help="Hub id or folder; the bundled tiny model if left out.")] = None,
    sites: Annotated[
        str | None,
        typer.Option(
            help="'conservative', 'aggressive', or a JSON file; if left out the model's own affinity_pool.json, "
            "else 'aggressive'."
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "--task", help="What to ask; also picks the recordings of a manifest by their task."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the page, the pictures and the figures.")] = Path("out/demo"),
    runs: Annotated[int, typer.Option(min=6, help="Pairs of timed runs for each recording.")] = 11,
    device: Annotated[str | None, typer.Option(help="'cpu', 'cuda', ...; a GPU if there is one.")] = None,
    dtype: Annotated[str, typer.Option(help="'auto': float32 on the CPU, the checkpoint's own on a GPU.")] = "auto",
) -> None:
    """Recorded speech through a speech language model, with and without Dual Affinity Pooling.

    Prints both transcripts and their word error rate, the audio tokens left after each site, prefill FLOPs, KV cache
    and time to first token side by side, and writes a page (HTML), a picture of the groups (PNG) and summary.json.
    """
    with explained():
        from rich.progress import track

        from .study import demo, lslm, page, report

        loaded = lslm.load(model, device, dtype)
        chosen, notes = demo.choose(loaded, audio or [], text or [], data, prompt)
        result = demo.run(
            loaded,
            chosen,
            sites or loaded.sites,
            prompt=prompt,
            runs=runs,
            notes=notes,
            progress=lambda clips: track(clips, "listening", console=console, transient=True),
        )
        report.show(result, console)
        written = page.write(result, out)
    console.print("\nWritten to", f"{out}:", ", ".join(path.name for path in written), markup=False, soft_wrap=True)


@app.command()
def env() -> None:
    """What can run here: the op's backends, the machine and the versions, as needed in a bug report."""
    from . import backends
    from .provenance import provenance

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for header in ("backend", "available", "devices", "detail"):
        table.add_column(header)
    for backend in backends():
        available = "[green]yes[/]" if backend.available else "[yellow]no[/]"
        table.add_row(backend.name, available, backend.devices, backend.detail)
    console.print(table)
    console.print()
    about = provenance(_accelerator())
    facts = Table.grid(padding=(0, 2))
    for name in ("device", "cores", "threads", "system", "commit"):
        facts.add_row(name, str(about[name]))
    for name, value in about["versions"].items():
        facts.add_row(name, "not installed" if value is None else value)
    console.print(facts)


@app.command()
def bench(
    suite: Annotated[
        str | None,
        typer.Argument(
            help="headline, target, sweep, overhead or instruction-sets; on a GPU gpu or gpu-sweep. The first if "
            "left out. See benchmarks/README.md."
        ),
    ] = None,
    threads: Annotated[list[int] | None, typer.Option(help="Only cases with this many threads; repeatable.")] = None,
    out: Annotated[Path | None, typer.Option(help="Results file to write (JSON).")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of every contender.")] = 200,
    seconds: Annotated[float, typer.Option(help="About how long one contender may take in one case.")] = 1.0,
    device: Annotated[str | None, typer.Option(help="'cpu', 'cuda', ...; a GPU if there is one.")] = None,
) -> None:
    """Time the op against copying its input, the paper's loop, vectorised torch and torch.compile.

    Every output is checked against the reference first; a wrong one is never timed.
    """
    with explained():
        from .bench import SUITES, run
        from .bench.table import render

        device = device or _accelerator()
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
            echo=lambda line: console.print(line, markup=False, soft_wrap=True, style="dim"),
        )
        console.print(render(results), markup=False, soft_wrap=True)


def _accelerator() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    """Entry point of ``affinity-pool``."""
    app()
