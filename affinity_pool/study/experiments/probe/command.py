"""``affinity-pool probe``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ....cli.application import errors_in_words
from ....cli.options import (
    Attention,
    Batch,
    Data,
    Device,
    Dtype,
    Layers,
    Limit,
    Longest,
    Model,
    Normaliser,
    OneTask,
    Out,
    Prompt,
    layers_of,
    parse_attention,
    parse_rules,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...data import Utterance


def probe(
    model: Model = None,
    data: Data = None,
    layers: Layers = None,
    thresholds: Annotated[str, typer.Option(help="Cosines to merge at.")] = "0.9,0.8,0.7,0.6",
    windows: Annotated[str, typer.Option(help="Latest tokens of the open group to compare with.")] = "1,3",
    picture: Annotated[
        str | None,
        typer.Option(help="Id of the recording whose groups are drawn; the longest with word times if left out."),
    ] = None,
    attention: Attention = "plain",
    task: OneTask = "transcribe",
    prompt: Prompt = None,
    limit: Limit = None,
    batch: Batch = 16,
    longest: Longest = 256,
    normaliser: Normaliser = "plain",
    out: Out = Path("out/probe"),
    device: Device = None,
    dtype: Dtype = "auto",
) -> None:
    """Affinity Pooling at one layer at a time: tokens left and error of the answers, over thresholds and windows.

    Also draws the groups that each layer would make of one recording, with its words.
    """
    with errors_in_words():
        from ...runs.conditions import Answering, scorable
        from ...runs.scores import summarise
        from ..session import RunOptions, open_session
        from . import run as probe
        from .page import page

        cosines, widths = parse_rules(thresholds, windows)
        kind = parse_attention(attention)

        def check(utterances: Sequence[Utterance], depth: int) -> None:
            layers_of(layers, depth)
            probe.check_picture(utterances, picture)

        common = RunOptions(model, data, task, limit, prompt, batch, out, device, dtype)
        session = open_session("probe", common, check=check)
        lslm = session.lslm
        chosen = layers_of(layers, lslm.depth)
        options = {"layers": chosen, "thresholds": cosines, "windows": widths, "attention": kind}
        options |= {"longest": longest, "normaliser": normaliser, "task": task}
        asked = probe.conditions(chosen, cosines, widths, kind)
        work = Answering(lslm, asked, longest, normaliser=normaliser)
        done = session.run("probe", options, work, scorable(lslm, normaliser=normaliser))
        if session.leads:
            summary = summarise(lslm, done)
            shown, audio = probe.recording_to_draw(session.utterances, picture, lslm)
            middle = sorted(cosines)[len(cosines) // 2]
            drawn = probe.picture(lslm, shown, audio, prompt, chosen, middle, widths[-1])
            session.write(summary, page(summary, drawn))
