"""``affinity-pool demo``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ....cli.application import console, errors_in_words
from ....cli.options import (
    AudioFiles,
    Device,
    Dtype,
    Manifest,
    Model,
    Normaliser,
    Sites,
    SitesAttention,
    TaskPrompt,
    Texts,
    parse_attention,
)


def demo(
    audio: AudioFiles = None,
    text: Texts = None,
    data: Manifest = None,
    model: Model = None,
    sites: Sites = None,
    attention: SitesAttention = None,
    prompt: TaskPrompt = None,
    normaliser: Normaliser = "plain",
    out: Annotated[Path, typer.Option(help="Folder for the page, the pictures and the figures.")] = Path("out/demo"),
    runs: Annotated[int, typer.Option(min=6, help="Pairs of timed runs for each recording.")] = 11,
    device: Device = None,
    dtype: Dtype = "auto",
) -> None:
    """Recorded speech through a speech language model, with and without Dual Affinity Pooling.

    Prints both transcripts and their word error rate, the audio tokens left after each site, prefill FLOPs, KV cache
    and time to first token side by side, and writes a page (HTML), a picture of the groups (PNG) and summary.json.
    """
    with errors_in_words():
        from rich.progress import track

        from ...runs import folders
        from ...sites import check_sites
        from ...subject import lslm
        from . import page as demo_page
        from . import run as demo
        from . import terminal as demo_terminal

        kind = None if attention is None else parse_attention(attention)
        folders.take(out, "demo")
        demo.find_recordings(audio or [], text or [], data, prompt)
        loaded = lslm.load(model, device, dtype, lambda depth: check_sites(sites, depth))
        chosen, notes = demo.select_recordings(loaded, audio or [], text or [], data, prompt)
        result = demo.run(
            loaded,
            chosen,
            sites or loaded.sites,
            attention=kind,
            prompt=prompt,
            normaliser=normaliser,
            runs=runs,
            notes=notes,
            progress=lambda clips: track(clips, "listening", console=console, transient=True),
        )
        demo_terminal.show(result, console)
        written = demo_page.write(result, out)
    console.print("\nWritten to", f"{out}:", ", ".join(path.name for path in written), soft_wrap=True)
