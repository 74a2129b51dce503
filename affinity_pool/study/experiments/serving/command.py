"""``affinity-pool serving``"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from ....cli.application import console, errors_in_words
from ....cli.options import LONGEST, SHORTEST, AudioFiles, Manifest, TaskPrompt, Texts, among, parse_list

BUNDLED, MID = "bundled", "mid"
MID_SECONDS = 30.0
SETTINGS = ("VLLM_", "OMP_")
"""How the names of variables begin that say how vLLM runs."""


def serving(
    model: Annotated[
        str | None,
        typer.Option(
            help="Hub id or folder; 'bundled', the tiny model, if left out; 'mid', 145 million parameters without "
            "weights, whose decoder does most of the work.",
            autocompletion=among("bundled", "mid"),
        ),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Of a server that is up, as http://127.0.0.1:8000, instead of starting one.")
    ] = None,
    keep: Annotated[float, typer.Option(help="Share of the audio tokens, compared with all of them.")] = 0.5,
    audio: AudioFiles = None,
    text: Texts = None,
    data: Manifest = None,
    prompt: TaskPrompt = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=SHORTEST,
            max=LONGEST,
            help="Time clips that are so long, made of the recordings; 30 for 'mid', else as they are, if left out.",
        ),
    ] = None,
    concurrency: Annotated[str, typer.Option(help="Requests at once.")] = "1,4,16",
    requests: Annotated[int, typer.Option(min=1, help="Each way and round; at least as many as at once.")] = 16,
    rounds: Annotated[int, typer.Option(min=6, help="At each concurrency, both ways in turns.")] = 8,
    tokens: Annotated[
        int, typer.Option(min=1, help="Of an answer: at most where it is read, exactly where it is timed.")
    ] = 32,
    dtype: Annotated[str, typer.Option(help="vLLM's --dtype; 'auto' is float32 on the CPU.")] = "auto",
    dummy_weights: Annotated[
        bool, typer.Option("--dummy-weights", help="A model without its weights: answers mean nothing.")
    ] = False,
    max_model_len: Annotated[int | None, typer.Option(min=1, help="vLLM's --max-model-len.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the page, the figures and the server's log.")] = Path(
        "out/serving"
    ),
) -> None:
    """Recordings answered by a server of vLLM, with and without pooling, through the OpenAI client.

    Starts one server and sends it requests both ways in turns. Prints both transcripts, prompt tokens, KV blocks, time
    to first token and throughput side by side, and writes a page (HTML) and summary.json.
    """
    with errors_in_words():
        import asyncio

        from ...report.page import write
        from ...runs import folders
        from ..demo.run import find_recordings, select_recordings
        from . import page, terminal
        from .run import STARTED, Options, Recording, Vocabulary, run

        at_once = tuple(parse_list(concurrency, int, "concurrency"))
        if min(at_once) < 1:
            raise typer.BadParameter(f"concurrency must be 1 or more, got {concurrency!r}")
        if not 0 < keep < 1:
            raise typer.BadParameter(f"keep must be a share above 0 and below 1, got {keep:g}")
        if url is not None and (model is not None or dtype != "auto" or max_model_len is not None):
            raise typer.BadParameter("--model, --dtype and --max-model-len are of a server that is started: not --url")
        folders.take(out, "serving")
        name = url or model or BUNDLED
        dummy = dummy_weights or name == MID
        every = find_recordings(audio or [], text or [], data, prompt)
        folders.begin(out, {"command": "serving", "model": name}, {})
        served = None if url else _model(name, out / "model")
        chosen, notes = (
            select_recordings(Vocabulary.of(name, served), audio or [], text or [], data, prompt)
            if served and name == BUNDLED
            else (every, [])
        )
        recordings = [Recording.of(one, prompt) for one in chosen]
        options = Options(
            keep=keep,
            concurrency=at_once,
            requests=requests,
            rounds=rounds,
            tokens=tokens,
            seconds=MID_SECONDS if name == MID and seconds is None else seconds,
            dummy_weights=dummy,
        )
        about = {"model": name, "server": "one that was up" if url else STARTED, "dtype": dtype}
        about |= {} if url else {name: value for name, value in os.environ.items() if name.startswith(SETTINGS)}
        with _vllm(served, dtype, dummy, max_model_len, out) if served else nullcontext(url) as address:
            summary = asyncio.run(run(str(address).rstrip("/"), recordings, options, about, notes, terminal.say))
        folders.write_json(out / folders.SUMMARY, summary)
        terminal.show(summary)
        written = write(page.page(summary), out)
    names = ", ".join(path.name for path in written)
    console.print(f"\nWritten to {out}: summary.json, {names}", soft_wrap=True)


def _model(name: str, folder: Path) -> str:
    """What vLLM is told to serve; the models that have names here are written to ``folder``."""
    from ...bundled import bundled_model
    from . import checkpoints

    if name not in (BUNDLED, MID):
        return str(Path(name).resolve()) if Path(name).is_dir() else name
    source = bundled_model("--model or --url")
    write = checkpoints.mid_size if name == MID else checkpoints.for_thirty_seconds
    shutil.rmtree(folder, ignore_errors=True)
    write(source, folder)
    return str(folder.resolve())


@contextmanager
def _vllm(model: str, dtype: str, dummy_weights: bool, max_model_len: int | None, out: Path) -> Iterator[str]:
    """The address of a server of the model, as long as it is wanted."""
    from . import server

    port, log = server.free_port(), out / "server.log"
    command = server.vllm_command(model, port, dtype, dummy_weights, max_model_len)
    console.print(f"vLLM is starting; its log is {log}", soft_wrap=True)
    with server.running(command, port, log) as url:
        yield url
