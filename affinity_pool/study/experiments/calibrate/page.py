"""The page of a calibration: the sites chosen, the frontier, and what every layer can bear."""

from __future__ import annotations

from statistics import mean

from ...report.charts import Point, Series, frontier, lines
from ...report.figures import Chart
from ...report.page import Card, Page, Section, Table
from ...report.phrases import Claim, claims, left_out, model_name, ran_on, weighed
from ...runs.results import CalibrationSummary, TrialResult
from ...sites import KEEP
from .run import TOLERANCE


def page(summary: CalibrationSummary) -> Page:
    """Of ``summary.json``."""
    chosen, config = summary["chosen"], summary["config"]
    kept, pairs = summary.get("chosen_shares"), summary.get("pairs", [])
    unit = "answer changed" if config["criterion"] == "answer" else "first token's KL, nats"
    shape = ".1%" if config["criterion"] == "answer" else ".3f"
    everything = [*summary["alone"], *summary["together"], *(shares for _, shares in pairs)]
    wanted = chosen["sites"] if chosen else ""
    marked = {trial["sites"]: trial["disagreement"] for trial in (chosen, kept) if trial}
    top = max([_top(everything), *marked.values()])
    bearable = {int(layer): share for layer, share in summary["bearable"].items()}
    return Page(
        title=f"Where to pool {model_name(summary['config'])}",
        lead=f"Found from {summary['utterances']} recordings without their texts: {config['budget']}, with answers "
        f"as close to the unpooled model's as can be." + weighed(config),
        cards=[
            Card(f"{chosen['relative_flops']:.0%}", "of the decoder's prefill FLOPs", wanted),
            Card(f"{chosen['retention']:.0%}", "of the audio tokens left", ""),
            Card(format(chosen["disagreement"], shape), unit, f"{summary['utterances']} recordings"),
        ] if chosen else [],
        findings=[
            f"Chosen: **{wanted}** (layer:threshold:window){'' if config.get('shares') else WRITTEN}."
            if chosen
            else f"**Nothing that was tried meets the budget** of {config['budget']}; the cheapest leaves "
            f"{min(trial['relative_flops'] for trial in everything):.0%} of the FLOPs.",
            *(
                [
                    f"Chosen of shares that are known beforehand: **{kept['sites']}** (layer:keep=share)"
                    f"{WRITTEN if config.get('shares') else ''}: {kept['retention']:.0%} of the audio tokens, "
                    f"{kept['relative_flops']:.0%} of the FLOPs, {unit} {kept['disagreement']:{shape}}."
                ]
                if kept
                else ["**None of the shares is within the budget.**"] * bool(pairs)
            ),
            *left_out(summary),
        ],
        sections=[
            Section(
                "The choice there was",
                [
                    frontier(
                        "frontier",
                        [
                            Point(
                                trial["relative_flops"],
                                trial["disagreement"],
                                trial["sites"] if trial["sites"] in marked else "",
                                _kind(trial),
                                chosen=trial["sites"] in marked,
                            )
                            for trial in _distinct(everything)
                            if trial["disagreement"] <= top
                        ],
                        x="decoder prefill FLOPs, share of the unpooled",
                        y=unit,
                        caption=f"What disagrees by more than {top:{shape}} is in the table below.",
                        forms=(".0%", shape),
                        height=340,
                    )
                ],
            ),
            *([Section("Thresholds and shares", [BESIDE, _pairs(pairs, shape, unit)])] if pairs else []),
            Section("What every layer bears", [_by_layer(summary, shape, unit), _bearable(bearable, shape)]),
            *([claims(_claims(summary, bearable))] if len(bearable) > 2 else []),
            Section("All that was tried", [_table(summary, shape, unit)]),
            Section("How it is measured", [HOW]),
        ],
        facts=ran_on(summary),
    )  # fmt: skip


def _kind(trial: TrialResult) -> str:
    number = "two sites" if "," in trial["sites"] else "one site"
    return f"{number}, shares" if KEEP in trial["sites"] else number


def _pairs(pairs: list[list[TrialResult]], shape: str, unit: str) -> Table:
    columns = [("tokens left", "retention", ".1%"), ("FLOPs", "relative_flops", ".1%"), (unit, "disagreement", shape)]
    return Table(
        ["thresholds", "shares", *(f"{title}\n{rule}" for title, _, _ in columns for rule in ("thresholds", "shares"))],
        [
            [one["sites"], other["sites"]]
            + [format(trial[key], form) for _, key, form in columns for trial in (one, other)]  # type: ignore[literal-required]
            for one, other in pairs
        ],
    )


def _distinct(trials: list[TrialResult]) -> list[TrialResult]:
    """A single site may have been measured in two steps."""
    return list({trial["sites"]: trial for trial in trials}.values())


def _top(trials: list[TrialResult]) -> float:
    """Where the picture may end: the worst half of the trials say little."""
    ordered = sorted(trial["disagreement"] for trial in trials)
    return max(2 * ordered[len(ordered) // 2], 1e-3)


def _layer(trial: TrialResult) -> int:
    return int(trial["sites"].split(":")[0])


def _by_layer(summary: CalibrationSummary, shape: str, unit: str) -> Chart:
    layers = sorted({_layer(trial) for trial in summary["alone"]})
    series = []
    for at, (low, high) in enumerate(((0.6, 0.9), (0.3, 0.6), (0.0, 0.3))):
        found = {
            layer: [t["disagreement"] for t in summary["alone"] if _layer(t) == layer and low <= t["retention"] < high]
            for layer in layers
        }
        name = f"{low:.0%} to {high:.0%} left"
        series.append(Series(name, layers, [min(of) if of else None for of in found.values()], colour=at, dash=at))
    return lines(
        "alone",
        series,
        x="layer",
        y=unit,
        title="Least disagreement of any window, pooling at one layer",
        top=_top(summary["alone"]) if summary["alone"] else None,
        form=shape,
    )


def _bearable(bearable: dict[int, float], shape: str) -> Chart:
    return lines(
        "bearable",
        [Series("least share", list(bearable), list(bearable.values()))],
        x="layer",
        y="audio tokens left",
        title=f"Fewest tokens left at a disagreement of {TOLERANCE:{shape}} at most",
        form=".0%",
    )


def _table(summary: CalibrationSummary, shape: str, unit: str) -> Table:
    rows = [
        [
            trial["sites"],
            f"{trial['retention']:.1%}",
            f"{trial['relative_flops']:.1%}",
            format(trial["disagreement"], shape),
        ]
        for trial in (*summary["together"], *summary["alone"])
    ]
    strong = [0] if not summary["chosen"] else [
        at for at, row in enumerate(rows) if row[0] == summary["chosen"]["sites"]
    ][:1]  # fmt: skip
    return Table(
        ["layer:threshold:window", "tokens left", "FLOPs", unit], rows, strong=strong if summary["chosen"] else ()
    )


def _claims(summary: CalibrationSummary, bearable: dict[int, float]) -> list[Claim]:
    first, *middle, deepest = bearable
    chosen = summary["chosen"]
    layers = [int(part.split(":")[0]) for part in chosen["sites"].split(",")] if chosen else []
    return [
        Claim(
            "The input and deep layers compress, middle layers do not.",
            ", ".join(f"layer {layer} {share:.0%}" for layer, share in bearable.items()),
            mean(bearable[layer] for layer in middle) > max(bearable[first], bearable[deepest]),
        ),
        Claim(
            "Pool at the input and again at a deep layer.",
            f"chosen: layers {', '.join(map(str, layers))} of {summary['depth']}"
            if chosen
            else "nothing met the budget",
            None if not chosen else len(layers) == 2 and layers[0] == 0 and layers[1] >= 0.6 * summary["depth"],
        ),
    ]


WRITTEN = ", written to `affinity_pool.json`, which `affinity_pool.patch(model, path)` loads"

BESIDE = (
    "All thresholds within the budget, and beside them the shares that leave as many tokens of all recordings "
    "together: a threshold leaves more of one recording than of another, a share the same of each."
)

HOW = (
    "First one prefill a recording counts what every threshold would leave at every layer. Then pooling at one layer "
    "at a time, at thresholds that leave about 90, 80, 70, 50, 35, 25, 15 and 8 %. Then the pairs of an input and a "
    "deeper site, and single sites, that promise most within the budget are measured, and those that are within it "
    "again with shares to keep in place of thresholds. **Disagreement** is the edit "
    "distance of the pooled answer's characters to the unpooled one's, as a share of its length and at most 1, or the "
    "KL divergence of the first token's distribution; means over recordings. No right answer is used."
)
