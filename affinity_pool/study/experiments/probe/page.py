"""The page of the layer-wise probe: tokens left and error over layers, and the groups of one recording."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from statistics import mean

from ...report.charts import NARROW, Point, Series, frontier, heat, lines
from ...report.figures import Chart
from ...report.groups_picture import Picture, chart
from ...report.page import Card, Cell, Page, Section, Table
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
    ran_on,
    value,
)


class Results:
    """The conditions of a summary by layer, threshold and window, for one task."""

    def __init__(self, summary: Summary, task: str) -> None:
        self.metrics = summary["metrics"][task]
        self.unpooled = summary["conditions"][0]["scores"][task]
        self._cells = {
            (c["layer"], c["threshold"], c["window"]): (c["retention"][-1], c["scores"][task])
            for c in summary["conditions"][1:]
        }
        self.layers, self.thresholds, self.windows = (sorted({key[place] for key in self._cells}) for place in range(3))

    def retention(self, layer: int, threshold: float, window: int) -> float:
        return float(self._cells[layer, threshold, window][0])

    def score(self, layer: int, threshold: float, window: int, metric: str) -> Summary:
        found: Summary = self._cells[layer, threshold, window][1][metric]
        return found

    def least(self, layer: int) -> tuple[float, float, int] | None:
        """The smallest share of tokens at which no difference of the first metric could be shown, and how."""
        harmless = [
            (self.retention(*key), key[1], key[2])
            for key in self._cells
            if key[0] == layer and holds_zero(self.score(*key, self.metrics[0]["name"])["difference"])
        ]
        return min(harmless, default=None)


def page(summary: Summary, picture: Picture) -> Page:
    """Of ``summary.json``, with the groups of one recording."""
    (task,) = summary["metrics"]
    results = Results(summary, task)
    head = results.metrics[0]
    deepest = results.layers[-1]
    least = {layer: results.least(layer) for layer in results.layers}
    return Page(
        title=f"Affinity Pooling layer by layer on {model_name(summary)}",
        lead=f"Audio tokens pooled at one layer at a time, over thresholds and windows. "
        f"{summary['conditions'][0]['utterances']} recordings, task “{task}”.",
        cards=[
            Card(value(head, results.unpooled[head["name"]]), f"{head['title']} unpooled", ""),
            *(_card(layer, least[layer]) for layer in (results.layers[0], deepest) if least[layer]),
        ],
        findings=[*_findings(results, least), *left_out(summary)],
        sections=[
            Section("What every layer can spare", [_bearable(results, least), *_curves(results)]),
            Section("The groups of one recording", [chart(picture, "groups-by-layer"), PICTURE]),
            Section("Error against tokens left", [_front(results)]),
            *([claims(_claims(results, least))] if len(results.layers) > 2 else []),
            Section("All figures", [*_grids(results), _table(results)]),
            Section("How it is measured", [INTERVALS, *metrics_used(summary)]),
        ],
        facts=ran_on(summary),
    )  # fmt: skip


def _card(layer: int, least: tuple[float, float, int] | None) -> Card:
    assert least is not None
    share, threshold, window = least
    return Card(f"{share:.0%}", f"of the tokens suffice at layer {layer}", f"threshold {threshold:g}, window {window}")


def _bearable(results: Results, least: dict[int, tuple[float, float, int] | None]) -> Chart:
    return lines(
        "bearable",
        [Series("least", results.layers, [found[0] if (found := least[layer]) else 1.0 for layer in results.layers])],
        x="layer",
        y="share of audio tokens",
        title="Fewest tokens without a difference that could be shown",
        form=".0%",
    )


def _curves(results: Results) -> list[Chart]:
    head, window = results.metrics[0], results.windows[-1]

    def of(threshold: float, left: bool) -> Series:
        scores = [results.score(layer, threshold, window, head["name"]) for layer in results.layers]
        at = results.thresholds.index(threshold)
        name = f"threshold {threshold:g}"
        if left:
            return Series(
                name,
                results.layers,
                [results.retention(layer, threshold, window) for layer in results.layers],
                colour=at,
            )
        bounds = [score["interval_95"] for score in scores]
        values = [score["value"] for score in scores]
        low, high = ([bound[side] for bound in bounds] for side in (0, 1))
        return Series(name, results.layers, values, low, high, colour=at)

    kept = lines(
        "retention",
        [of(threshold, True) for threshold in results.thresholds],
        x="layer",
        y="audio tokens left",
        title=f"Tokens left, window {window}",
        form=".0%",
        width=NARROW,
    )
    error = lines(
        head["name"],
        [of(threshold, False) for threshold in results.thresholds],
        x="layer",
        y=head["title"],
        title=f"{head['title']}, window {window}",
        baseline=("unpooled", results.unpooled[head["name"]]["value"]),
        top=1.5 if head["percent"] else None,
        form=".0%" if head["percent"] else ".0f",
        width=NARROW,
    )
    return [kept, error]


def _front(results: Results) -> Chart:
    head = results.metrics[0]
    points = [
        Point(
            results.retention(layer, threshold, window),
            results.score(layer, threshold, window, head["name"])["value"],
            "",
            f"layer {layer}",
        )
        for layer in results.layers
        for threshold in results.thresholds
        for window in results.windows
    ]
    return frontier(
        "tokens",
        points,
        x="audio tokens left",
        y=head["title"],
        baseline=("unpooled", results.unpooled[head["name"]]["value"]),
        top=1.0 if head["percent"] else None,
        forms=(".0%", form(head)),
    )


def _grids(results: Results) -> list[Chart]:
    head = results.metrics[0]
    grids = []
    for window in results.windows:
        rows = [f"layer {layer}" for layer in results.layers]
        columns = [f"{threshold:g}" for threshold in results.thresholds]
        cells = [[(layer, threshold, window) for threshold in results.thresholds] for layer in results.layers]
        shares = [[results.retention(*cell) for cell in row] for row in cells]
        errors = [[results.score(*cell, head["name"])["value"] for cell in row] for row in cells]
        grid = partial(heat, rows=rows, columns=columns, x="threshold", y="layer")
        top = 1.0 if head["percent"] else None
        title = f"{head['title']}, window {window}"
        grids.append(grid(f"kept-{window}", values=shares, title=f"Tokens left, window {window}", form=".0%"))
        grids.append(grid(f"error-{window}", values=errors, title=title, form=form(head), top=top, colour=1))
    return grids


def _table(results: Results) -> Table:
    rows = []
    for window in results.windows:
        for threshold in results.thresholds:
            for layer in results.layers:
                key = (layer, threshold, window)
                row: list[str | Cell] = [f"layer {layer}, {threshold:g}, window {window}"]
                row.append(f"{results.retention(*key):.1%}")
                for metric in results.metrics:
                    score = results.score(*key, metric["name"])
                    row += [value(metric, score), change(metric, score["difference"])]
                rows.append(row)
    header = ["", "tokens left", *(text for m in results.metrics for text in (m["title"], "- unpooled, points"))]
    return Table(header, rows)


def _findings(results: Results, least: dict[int, tuple[float, float, int] | None]) -> list[str]:
    head = results.metrics[0]
    able = [layer for layer in results.layers if least[layer]]
    unable = [str(layer) for layer in results.layers if not least[layer]]
    said = [
        f"Layer {layer} can do with **{found[0]:.0%}** of the audio tokens (threshold {found[1]:g}, window {found[2]}) "
        f"without a difference of {head['title']} that could be shown."
        for layer in dict.fromkeys((*able[:1], *able[-1:]))
        if (found := least[layer])
    ]
    if unable:
        said.append(f"At layers {', '.join(unable)} every setting tried changes {head['title']}.")
    return said


def _claims(results: Results, least: dict[int, tuple[float, float, int] | None]) -> list[Claim]:
    def share(layer: int) -> float:
        found = least[layer]
        return found[0] if found else 1.0

    first, *middle, deepest = results.layers
    shares = [share(layer) for layer in results.layers]
    drops = sum(later <= before for before, later in pairwise(shares))
    return [
        Claim(
            "A deep layer keeps 5 to 14 % of the tokens at the unpooled error.",
            f"layer {deepest}: {share(deepest):.0%}",
            share(deepest) <= 0.15,
        ),
        Claim(
            "The input can be pooled to about three quarters.",
            f"layer {first}: {share(first):.0%}",
            share(first) <= 0.8,
        ),
        Claim(
            "Middle layers bear less than the input.",
            f"fewest tokens: layer {first} {share(first):.0%}, the layers between "
            + ", ".join(f"{share(layer):.0%}" for layer in middle),
            mean(share(layer) for layer in middle) > share(first),
        ),
        Claim(
            "Deeper layers bear more.",
            f"in {drops} of {len(shares) - 1} steps to the next layer as few tokens or fewer suffice",
            drops >= 0.75 * (len(shares) - 1),
        ),
    ]


PICTURE = (
    "A row is what pooling at that layer alone would leave; bars are as long as the time they cover, a number says "
    "how many tokens a group holds, the number at the right how many are left. Dashed lines are the words' edges, "
    "where they are known."
)
