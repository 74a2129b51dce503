"""``affinity-pool oracle``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ....cli.application import errors_in_words
from ....cli.options import (
    Alignments,
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
    Seed,
    among,
    layers_of,
    parse_list,
)

OPERATORS = ("random-drop", "uniform-drop", "uniform-merge")


def oracle(
    model: Model = None,
    data: Data = None,
    layers: Layers = None,
    operators: Annotated[
        str,
        typer.Option(
            help="Of random-drop, uniform-drop, uniform-merge.", autocompletion=among(*OPERATORS, listed=True)
        ),
    ] = ",".join(OPERATORS),
    budgets: Annotated[
        str, typer.Option(help="Tokens a unit, as '2', or shares of the recording, as '25%'; the paper's if left out.")
    ] = "25.67%,47.57%,76.08%",
    units: Annotated[str, typer.Option(help="'words', or spans of so many seconds, as '0.4'.")] = "words",
    alignments: Alignments = None,
    seed: Seed = 0,
    task: OneTask = "transcribe",
    prompt: Prompt = None,
    limit: Limit = None,
    batch: Batch = 16,
    longest: Longest = 256,
    normaliser: Normaliser = "plain",
    out: Out = Path("out/oracle"),
    device: Device = None,
    dtype: Dtype = "auto",
) -> None:
    """Oracle interventions: each word compressed to a few tokens, at one layer at a time.

    Shows where in the model audio tokens can be spared: the error of the answers over layers, for Random Drop, Uniform
    Drop and Uniform Merge at each budget.
    """
    with errors_in_words():
        from ...data.digests import of_word_times
        from ...runs.conditions import Answering, Condition, scorable
        from ...runs.scores import summarise
        from ..session import RunOptions, open_session
        from . import run as oracle
        from .page import page

        sizes = parse_list(budgets, oracle.UnitBudget.parse, "budgets")
        names = parse_list(operators, str, "operators")
        oracle.check_units(units, alignments)

        def conditions(depth: int) -> list[Condition]:
            return oracle.conditions(layers_of(layers, depth), names, sizes, seed)

        common = RunOptions(model, data, task, limit, prompt, batch, out, device, dtype)
        session = open_session("oracle", common, check=lambda utterances, depth: conditions(depth))
        lslm = session.lslm
        options = {
            "layers": layers_of(layers, lslm.depth),
            "operators": operators,
            "budgets": budgets,
            "units": units,
            "seed": seed,
        }
        done = session.run(
            "oracle",
            {**options, "alignments": alignments, "longest": longest, "normaliser": normaliser, "task": task},
            Answering(lslm, conditions(lslm.depth), longest, normaliser=normaliser),
            scorable(lslm, oracle.unit_spans(units, alignments, lslm), normaliser),
            files=of_word_times(alignments),
        )
        if session.leads:
            summary = summarise(lslm, done)
            session.write(summary, page(summary))
