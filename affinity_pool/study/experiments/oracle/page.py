"""The page of the oracle interventions: error over layers, for each budget and operator."""

from __future__ import annotations

from statistics import mean

from ...report.charts import NARROW, Series, lines
from ...report.figures import Chart
from ...report.page import Card, Page, Section, Table
from ...report.telling import (
    INTERVALS,
    Claim,
    Summary,
    change,
    claims,
    form,
    holds_zero,
    left_out,
    metrics_used,
    model_name,
    plain,
    ran_on,
    value,
)

OPERATOR = {"random-drop": "Random Drop", "uniform-drop": "Uniform Drop", "uniform-merge": "Uniform Merge"}


class Results:
    """The conditions of a summary by budget, operator and layer, for one task."""

    def __init__(self, summary: Summary, task: str) -> None:
        self.metrics = summary["metrics"][task]
        self.unpooled = summary["conditions"][0]["scores"][task]
        self._cells = {
            (c["budget"], c["operator"], c["layer"]): {**c["scores"][task], "retention": c["retention"][-1]}
            for c in summary["conditions"][1:]
        }
        self.budgets, self.operators, self.layers = (
            list(dict.fromkeys(key[place] for key in self._cells)) for place in range(3)
        )

    def score(self, budget: str, operator: str, layer: int, metric: str) -> Summary:
        found: Summary = self._cells[budget, operator, layer][metric]
        return found

    def retention(self, budget: str) -> float:
        return mean(cell["retention"] for (of, _, _), cell in self._cells.items() if of == budget)


def page(summary: Summary) -> Page:
    """Of ``summary.json``."""
    (task,) = summary["metrics"]
    results = Results(summary, task)
    head = results.metrics[0]
    unit = "word" if summary["config"]["units"] == "words" else f"span of {summary['config']['units']} s"
    return Page(
        title=f"Oracle interventions on {model_name(summary)}",
        lead=f"At one layer at a time every {unit} was compressed to a budget, by operators that know where it is and "
        f"nothing else. Where the error stays at the unpooled model's, the audio tokens were redundant. "
        f"{summary['conditions'][0]['utterances']} recordings, task “{task}”.",
        cards=[
            Card(value(head, results.unpooled[head["name"]]), f"{head['title']} unpooled", ""),
            *(
                Card(
                    value(head, _best(results, budget)[1]),
                    f"{head['title']} with {results.retention(budget):.0%} of the tokens",
                    f"Uniform Merge at layer {_best(results, budget)[0]}, its best",
                )
                for budget in results.budgets
            ),
        ],
        findings=[*_findings(results), *left_out(summary)],
        sections=[
            *(
                Section(
                    f"{metric['title']} over layers",
                    [_chart(results, metric, budget) for budget in results.budgets],
                )
                for metric in results.metrics
            ),
            *([claims(_claims(results))] if len(results.layers) > 2 else []),
            Section("All figures", [*(_table(results, metric) for metric in results.metrics)]),
            Section("How it is measured", [HOW, INTERVALS, *metrics_used(summary)]),
        ],
        facts=ran_on(summary),
    )


def _best(results: Results, budget: str) -> tuple[int, Summary]:
    """The layer where the last operator does least harm."""
    name, operator = results.metrics[0]["name"], results.operators[-1]
    layer = min(results.layers, key=lambda layer: results.score(budget, operator, layer, name)["value"])
    return layer, results.score(budget, operator, layer, name)


def _chart(results: Results, metric: Summary, budget: str) -> Chart:
    def curve(operator: str) -> Series:
        scores = [results.score(budget, operator, layer, metric["name"]) for layer in results.layers]
        return Series(
            OPERATOR[operator],
            results.layers,
            [score["value"] for score in scores],
            [score["interval_95"][0] for score in scores],
            [score["interval_95"][1] for score in scores],
            colour=list(OPERATOR).index(operator),
            dash=list(OPERATOR).index(operator),
        )

    worst = max(
        results.score(of, operator, layer, metric["name"])["value"]
        for of in results.budgets
        for operator in results.operators
        for layer in results.layers
    )
    return lines(
        f"{metric['name']}-{results.retention(budget) * 100:.0f}",
        [curve(operator) for operator in results.operators],
        x="layer",
        y=metric["title"],
        title=f"{results.retention(budget):.0%} of the tokens left",
        baseline=("unpooled", results.unpooled[metric["name"]]["value"]),
        top=min(worst, 1.5) if metric["percent"] else None,
        form=".0%" if metric["percent"] else ".0f",
        width=NARROW,
    )


def _table(results: Results, metric: Summary) -> Table:
    rows = [["unpooled", *[value(metric, results.unpooled[metric["name"]])] * len(results.layers)]]
    for budget in results.budgets:
        for operator in results.operators:
            scores = [results.score(budget, operator, layer, metric["name"]) for layer in results.layers]
            name = f"{OPERATOR[operator]}, {results.retention(budget):.0%}"
            rows.append([name, *(value(metric, score) for score in scores)])
    return Table(["", *(f"layer {layer}" for layer in results.layers)], rows, metric["title"], strong=[0])


def _findings(results: Results) -> list[str]:
    head = results.metrics[0]
    said = []
    for budget in results.budgets:
        operator = results.operators[-1]
        same = [
            layer
            for layer in results.layers
            if holds_zero(results.score(budget, operator, layer, head["name"])["difference"])
        ]
        where = ", ".join(map(str, same)) or "none"
        said.append(
            f"{OPERATOR[operator]} to **{results.retention(budget):.0%}** of the tokens: no difference of "
            f"{head['title']} could be shown at layers {where} of {results.layers[0]} to {results.layers[-1]}."
        )
    return said


def _claims(results: Results) -> list[Claim]:
    head = results.metrics[0]
    tight = min(results.budgets, key=results.retention)
    merge = results.operators[-1]
    deepest, first = results.layers[-1], results.layers[0]

    def at(layer: int, operator: str = merge) -> Summary:
        return results.score(tight, operator, layer, head["name"])

    deep = at(deepest)
    middle = [layer for layer in results.layers if first < layer < deepest]
    worst = max(results.layers, key=lambda layer: at(layer)["value"])
    found = [
        Claim(
            f"Deep layers stay at the baseline with a quarter of the tokens ({results.retention(tight):.0%} here).",
            f"layer {deepest}, {OPERATOR[merge]}: {plain(change(head, deep['difference']))} points",
            holds_zero(deep["difference"]),
        ),
        Claim(
            "Middle layers suffer most.",
            f"the worst is layer {worst}: {value(head, at(worst))}",
            worst in middle[: -(len(middle) // 3) or None],
        ),
    ]
    if set(results.operators) == set(OPERATOR):
        averages = {
            operator: mean(
                results.score(budget, operator, layer, head["name"])["value"]
                for budget in results.budgets
                for layer in results.layers
            )
            for operator in results.operators
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
