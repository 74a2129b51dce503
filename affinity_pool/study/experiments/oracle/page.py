"""The page of the oracle interventions: error over layers, for each budget and operator."""

from __future__ import annotations

from statistics import mean

from ...report.charts import NARROW, Series, lines
from ...report.figures import Chart
from ...report.grid import Grid
from ...report.page import Card, Page, Section, Table
from ...report.phrases import (
    INTERVALS,
    Claim,
    change,
    claims,
    curve,
    form,
    holds_zero,
    left_out,
    metrics_used,
    model_name,
    plain,
    ran_on,
    value,
)
from ...runs.results import ConditionsSummary, MetricResult, ScoreResult

OPERATOR = {"random-drop": "Random Drop", "uniform-drop": "Uniform Drop", "uniform-merge": "Uniform Merge"}


def page(summary: ConditionsSummary) -> Page:
    """Of ``summary.json``."""
    grid = Grid.of(summary, "budget", "operator", "layer")
    head = grid.headline
    unit = "word" if summary["config"]["units"] == "words" else f"span of {summary['config']['units']} s"
    return Page(
        title=f"Oracle interventions on {model_name(summary['config'])}",
        lead=f"At one layer at a time every {unit} was compressed to a budget, by operators that know where it is and "
        f"nothing else. Where the error stays at the unpooled model's, the audio tokens were redundant. "
        f"{summary['conditions'][0]['utterances']} recordings, task “{grid.task}”.",
        cards=[
            Card(value(head, grid.unpooled[head["name"]]), f"{head['title']} unpooled", ""),
            *(
                Card(
                    value(head, _best(grid, budget)[1]),
                    f"{head['title']} with {_retention(grid, budget):.0%} of the tokens",
                    f"Uniform Merge at layer {_best(grid, budget)[0]}, its best",
                )
                for budget in grid.axis("budget")
            ),
        ],
        findings=[*_findings(grid), *left_out(summary)],
        sections=[
            *(
                Section(
                    f"{metric['title']} over layers",
                    [_chart(grid, metric, budget) for budget in grid.axis("budget")],
                )
                for metric in grid.metrics
            ),
            *([claims(_claims(grid))] if len(grid.axis("layer")) > 2 else []),
            Section("All figures", [*(_table(grid, metric) for metric in grid.metrics)]),
            Section("How it is measured", [HOW, INTERVALS, *metrics_used(summary)]),
        ],
        facts=ran_on(summary),
    )


def _retention(grid: Grid, budget: str) -> float:
    """Share of the audio tokens that a budget left: about the same at every layer."""
    return mean(grid.retention(*key) for key in grid.cells if key[0] == budget)


def _best(grid: Grid, budget: str) -> tuple[int, ScoreResult]:
    """The layer where the last operator does least harm."""
    operator = grid.axis("operator")[-1]
    layer = min(grid.axis("layer"), key=lambda layer: grid.score(budget, operator, layer)["value"])
    return layer, grid.score(budget, operator, layer)


def _chart(grid: Grid, metric: MetricResult, budget: str) -> Chart:
    def of(operator: str) -> Series:
        layers, place = grid.axis("layer"), list(OPERATOR).index(operator)
        scores = [grid.score(budget, operator, layer, metric=metric) for layer in layers]
        return curve(OPERATOR[operator], layers, scores, place, place)

    worst = max(
        grid.score(of, operator, layer, metric=metric)["value"]
        for of in grid.axis("budget")
        for operator in grid.axis("operator")
        for layer in grid.axis("layer")
    )
    return lines(
        f"{metric['name']}-{_retention(grid, budget) * 100:.0f}",
        [of(operator) for operator in grid.axis("operator")],
        x="layer",
        y=metric["title"],
        title=f"{_retention(grid, budget):.0%} of the tokens left",
        baseline=("unpooled", grid.unpooled[metric["name"]]["value"]),
        top=min(worst, 1.5) if metric["percent"] else None,
        form=".0%" if metric["percent"] else ".0f",
        width=NARROW,
    )


def _table(grid: Grid, metric: MetricResult) -> Table:
    rows = [["unpooled", *[value(metric, grid.unpooled[metric["name"]])] * len(grid.axis("layer"))]]
    for budget in grid.axis("budget"):
        for operator in grid.axis("operator"):
            scores = [grid.score(budget, operator, layer, metric=metric) for layer in grid.axis("layer")]
            name = f"{OPERATOR[operator]}, {_retention(grid, budget):.0%}"
            rows.append([name, *(value(metric, score) for score in scores)])
    return Table(["", *(f"layer {layer}" for layer in grid.axis("layer"))], rows, metric["title"], strong=[0])


def _findings(grid: Grid) -> list[str]:
    head, layers = grid.headline, grid.axis("layer")
    said = []
    for budget in grid.axis("budget"):
        operator = grid.axis("operator")[-1]
        same = [layer for layer in layers if holds_zero(grid.score(budget, operator, layer)["difference"])]
        where = ", ".join(map(str, same)) or "none"
        said.append(
            f"{OPERATOR[operator]} to **{_retention(grid, budget):.0%}** of the tokens: no difference of "
            f"{head['title']} could be shown at layers {where} of {layers[0]} to {layers[-1]}."
        )
    return said


def _claims(grid: Grid) -> list[Claim]:
    head = grid.headline
    tight = min(grid.axis("budget"), key=lambda budget: _retention(grid, budget))
    merge = grid.axis("operator")[-1]
    deepest, first = grid.axis("layer")[-1], grid.axis("layer")[0]

    def at(layer: int, operator: str = merge) -> ScoreResult:
        return grid.score(tight, operator, layer)

    deep = at(deepest)
    middle = [layer for layer in grid.axis("layer") if first < layer < deepest]
    worst = max(grid.axis("layer"), key=lambda layer: at(layer)["value"])
    found = [
        Claim(
            f"Deep layers stay at the baseline with a quarter of the tokens ({_retention(grid, tight):.0%} here).",
            f"layer {deepest}, {OPERATOR[merge]}: {plain(change(head, deep['difference']))} points",
            holds_zero(deep["difference"]),
        ),
        Claim(
            "Middle layers suffer most.",
            f"the worst is layer {worst}: {value(head, at(worst))}",
            worst in middle[: -(len(middle) // 3) or None],
        ),
    ]
    if set(grid.axis("operator")) == set(OPERATOR):
        averages = {
            operator: mean(
                grid.score(budget, operator, layer)["value"]
                for budget in grid.axis("budget")
                for layer in grid.axis("layer")
            )
            for operator in grid.axis("operator")
        }
        ordered = averages["uniform-merge"] <= averages["uniform-drop"] <= averages["random-drop"]
        found.append(
            Claim(
                "Uniform Merge is no worse than Uniform Drop, which is no worse than Random Drop.",
                "mean over layers and budgets: "
                + ", ".join(f"{OPERATOR[name]} {averages[name]:{form(head)}}" for name in reversed(OPERATOR)),
                ordered,
            )
        )
    return found


HOW = (
    "Word times cut a recording's audio tokens into units, silences between words included. A budget in per cent is "
    "one of the whole recording; every unit keeps at least one token. Random Drop keeps tokens at random (seeded, the "
    "same at every layer), Uniform Drop at equal strides, Uniform Merge the means of equal bins. Answers are greedy."
)
