"""``affinity-pool calibrate``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    Out,
    Prompt,
    Task,
    among,
    layers_of,
    parse_attention,
    parse_rules,
)


def calibrate(
    model: Model = None,
    data: Data = None,
    flops: Annotated[
        float | None, typer.Option(help="Budget: decoder prefill FLOPs, as a share of the unpooled model's.")
    ] = None,
    retention: Annotated[float | None, typer.Option(help="Budget: share of the audio tokens left at the end.")] = None,
    criterion: Annotated[
        str,
        typer.Option(
            help="What shall stay as it was: 'answer', the greedy answer's text, or 'first-token', its distribution.",
            autocompletion=among("answer", "first-token"),
        ),
    ] = "answer",
    layers: Layers = None,
    windows: Annotated[str, typer.Option(help="Latest tokens of the open group to compare with.")] = "1,3",
    shares: Annotated[
        bool, typer.Option("--shares", help="Write the shares to keep, which are found too, instead of thresholds.")
    ] = False,
    attention: Attention = "plain",
    task: Task = None,
    prompt: Prompt = None,
    limit: Limit = None,
    batch: Batch = 16,
    longest: Longest = 256,
    normaliser: Normaliser = "plain",
    out: Out = Path("out/calibrate"),
    device: Device = None,
    dtype: Dtype = "auto",
) -> None:
    """Find sites, thresholds and windows for a budget, and shares to keep, from recordings without texts.

    Writes affinity_pool.json, for affinity_pool.patch(model, path), and a picture of what else there was to choose.
    """
    with errors_in_words():
        from ..session import RunOptions, open_session
        from . import run as calibrate
        from .page import page

        budget = calibrate.CostBudget(flops, retention)
        kind = calibrate.check_criterion(criterion)
        weight = parse_attention(attention)
        _, widths = parse_rules("1", windows)
        common = RunOptions(model, data, task, limit, prompt, batch, out, device, dtype)
        session = open_session("calibrate", common, check=lambda utterances, depth: layers_of(layers, depth))
        search = calibrate.Search(
            session.lslm,
            budget,
            kind,
            tuple(layers_of(layers, session.lslm.depth)),
            tuple(widths),
            longest,
            normaliser,
            weight,
        )
        found = search.run(
            lambda step, options, work: session.run(step, {**options, "task": task}, work, folder=out / step)
        )
        if session.leads:
            summary = calibrate.summarise(search, found, session.data, shares=shares)
            session.write(summary, page(summary))
            chosen = found.chosen_shares if shares else found.chosen
            if chosen is not None:
                calibrate.save(chosen, weight, out)
