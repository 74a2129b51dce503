"""The page of the similarity dynamics: three figures over layers."""

from __future__ import annotations

from itertools import pairwise

from ...report.charts import lines
from ...report.page import Card, Page, Section, Table
from ...report.phrases import Claim, claims, curve, left_out, model_name, ran_on
from ...runs.results import DynamicsSummary, SimilarityFigure

FIGURE: dict[SimilarityFigure, str] = {
    "intra_word": "intra-word maximum",
    "neighbour": "neighbours",
    "overall": "all pairs",
}


def page(summary: DynamicsSummary) -> Page:
    """Of ``summary.json``."""
    layers = summary["layers"]
    known = [name for name in FIGURE if layers[0][name] is not None]
    estimates = {name: [found for layer in layers if (found := layer[name])] for name in known}
    curves = {name: [found["value"] for found in estimates[name]] for name in known}
    places = [layer["layer"] for layer in layers]
    chart = lines(
        "similarity",
        [curve(FIGURE[name], places, estimates[name], list(FIGURE).index(name)) for name in known],
        x=f"layer that the hidden states enter; {places[-1]}: what leaves the last",
        y="cosine similarity",
        form=".2f",
        height=320,
    )
    shape = turns(curves["neighbour"])
    return Page(
        title=f"Similarity dynamics of {model_name(summary['config'])}",
        lead=f"How alike the audio tokens are, layer by layer: {summary['utterances']} recordings, "
        f"{summary['audio_tokens']} audio tokens.",
        cards=[
            Card(f"{curves['neighbour'][0]:.2f}", "cosine of neighbours at the input", ""),
            Card(
                f"{min(curves['neighbour']):.2f}",
                "least",
                f"layer {curves['neighbour'].index(min(curves['neighbour']))}",
            ),
            Card(f"{curves['neighbour'][-1]:.2f}", "after the last layer", ""),
        ],
        findings=[
            f"Neighbour similarity over layers: {_told(shape)}.",
            *([] if summary["with_words"] else ["No word times are known: the intra-word maximum is left out."]),
            *left_out(summary),
        ],
        sections=[
            Section("Over layers", [chart]),
            claims(
                [
                    Claim(
                        "Neighbour similarity goes up, down in the middle, and up again.",
                        _told(shape),
                        [way for way, _, _ in shape] == ["up", "down", "up"],
                    )
                ]
            ),
            Section(
                "All figures",
                [
                    Table(
                        ["", *(FIGURE[name] for name in known)],
                        [[f"layer {at}", *(f"{curves[name][at]:.4f}" for name in known)] for at in places],
                    )
                ],
            ),
            Section("How it is measured", [HOW]),
        ],
        facts=ran_on(summary),
    )


def turns(values: list[float], least: float = 0.05) -> list[tuple[str, int, int]]:
    """The curve as stretches up and down, (way, from, to): swings under ``least`` of its range do not count."""
    slack = least * (max(values) - min(values))
    ends = [0]
    for at in range(1, len(values)):
        if len(ends) > 1 and (values[at] - values[ends[-1]]) * (values[ends[-1]] - values[ends[-2]]) >= 0:
            ends[-1] = at
        elif abs(values[at] - values[ends[-1]]) > slack:
            ends.append(at)
    return [("up" if values[b] > values[a] else "down", a, b) for a, b in pairwise(ends)]


def _told(shape: list[tuple[str, int, int]]) -> str:
    return ", then ".join(f"{way} from layer {a} to {b}" for way, a, b in shape) or "flat"


HOW = (
    "Cosines of the hidden states that enter each decoder layer, of the audio tokens alone, in float32, in one "
    "prefill a recording. **Neighbours**: mean over adjacent tokens. **All pairs**: mean over pairs of different "
    "tokens of a recording. **Intra-word maximum**: mean over words of the largest cosine of adjacent tokens inside "
    "the word. Recordings are weighted by their tokens or words; bands are 95 % bootstrap intervals over recordings."
)
