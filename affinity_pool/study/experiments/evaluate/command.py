"""``affinity-pool eval``"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ....cli.application import errors_in_words
from ....cli.options import (
    PRESETS,
    Attentions,
    Batch,
    Data,
    Device,
    Dtype,
    Limit,
    Longest,
    Model,
    Normaliser,
    Out,
    Prompt,
    Seed,
    Task,
    among,
    parse_attention,
    parse_list,
)

BASELINES = ("speed-up", "random-drop", "uniform-drop", "uniform-merge", "interpolate", "bipartite-merge")


def evaluate(
    model: Model = None,
    data: Data = None,
    sites: Annotated[
        list[str] | None,
        typer.Option(
            help="'aggressive', 'conservative', 'aggressive-counted', a JSON file, or sites with commas between them, "
            "LAYER:THRESHOLD:WINDOW or LAYER:keep=SHARE, as '0:0.9:1,7:keep=0.2'; repeat to compare, shares after the "
            "thresholds at the same layers. If left out the model's own affinity_pool.json, else 'aggressive'.",
            autocompletion=among(*PRESETS),
        ),
    ] = None,
    baselines: Annotated[
        str,
        typer.Option(
            help="Other ways to the same number of tokens: speed-up, random-drop, uniform-drop, uniform-merge, "
            "interpolate, bipartite-merge; 'none' for none. speed-up goes with sites at the input alone.",
            autocompletion=among(*BASELINES, listed=True),
        ),
    ] = ",".join(BASELINES),
    attention: Attentions = None,
    judge: Annotated[
        str | None,
        typer.Option(help="Judge of spoken answers, as package.module:function(question, reference, answer)."),
    ] = None,
    seed: Seed = 0,
    task: Task = None,
    prompt: Prompt = None,
    limit: Limit = None,
    batch: Batch = 16,
    longest: Longest = 256,
    normaliser: Normaliser = "plain",
    out: Out = Path("out/eval"),
    device: Device = None,
    dtype: Dtype = "auto",
) -> None:
    """Transcription, spoken questions and translation with and without pooling, beside baselines at the same budget.

    WER and cWER, accuracy, BLEU, each with intervals of the paired difference; tokens left; prefill FLOPs.
    """
    with errors_in_words():
        from ...data.digests import of_judge
        from ...metrics import judged, load_judge
        from ...runs.conditions import Answering, scorable
        from ...sites import NamedSites, parse_sites
        from ..session import RunOptions, open_session
        from . import run as evaluate
        from .page import page

        referee = None if judge is None else judged(load_judge(judge), judge)
        names = [] if baselines == "none" else parse_list(baselines, str, "baselines")

        # plain before what is compared with it
        kinds = [None] if attention is None else sorted(parse_list(attention, parse_attention, "attention"))

        def choices(specs: Sequence[str], depth: int | None) -> list[NamedSites]:
            return [parse_sites(spec, depth, kind) for spec in specs for kind in kinds]

        def check(utterances: object, depth: int | None) -> None:
            evaluate.conditions(choices(sites or (), depth), names, seed)

        common = RunOptions(model, data, task, limit, prompt, batch, out, device, dtype)
        session = open_session("eval", common, check=check)
        lslm = session.lslm
        chosen = choices(sites or [lslm.sites], lslm.pooled_depth)
        for choice in chosen:
            lslm.resolved(choice.pooling)
        conditions = evaluate.conditions(chosen, names, seed)
        options = {
            "conditions": [condition.name for condition in conditions],
            "positions": [choice.pooling.positions or "keep" for choice in chosen],
            "attention": [choice.pooling.attention for choice in chosen],
            "seed": seed,
            "longest": longest,
            "judge": judge,
            "normaliser": normaliser,
            "task": task,
        }
        work = Answering(lslm, conditions, longest, referee, normaliser)
        files = {} if judge is None else {"judge": of_judge(judge)}
        done = session.run("eval", options, work, scorable(lslm, normaliser=normaliser), files=files)
        if session.leads:
            summary = evaluate.summarise(lslm, done, referee)
            session.write(summary, page(summary))
