"""The page of the layer-wise probe: tokens left and error over layers, and the groups of one recording."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from statistics import mean

from ...report.charts import NARROW, Point, Series, frontier, heat, lines
from ...report.figures import Chart
from ...report.grid import Grid
from ...report.groups_picture import Picture, chart
from ...report.page import Card, Cell, Page, Section, Table
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
    ran_on,
    value,
    weighed,
)
from ...runs.results import ConditionsSummary

Fewest = tuple[float, float, int]
"""A share of tokens, and the threshold and window that leave it."""


def page(summary: ConditionsSummary, picture: Picture) -> Page:
    """Of ``summary.json``, with the groups of one recording."""
    grid = Grid.of(summary, "layer", "threshold", "window")
    head = grid.headline
    layers = grid.axis("layer")
    least = {layer: _fewest(grid, layer) for layer in layers}
    return Page(
        title=f"Affinity Pooling layer by layer on {model_name(summary['config'])}",
        lead=f"Audio tokens pooled at one layer at a time, over thresholds and windows. "
        f"{summary['conditions'][0]['utterances']} recordings, task “{grid.task}”."
        + weighed(summary["config"]),
        cards=[
            Card(value(head, grid.unpooled[head["name"]]), f"{head['title']} unpooled", ""),
            *(_card(layer, least[layer]) for layer in (layers[0], layers[-1]) if least[layer]),
        ],
        findings=[*_findings(grid, least), *left_out(summary)],
        sections=[
            Section("What every layer can spare", [_bearable(grid, least), *_curves(grid)]),
            Section("The groups of one recording", [chart(picture, "groups-by-layer"), PICTURE]),
            Section("Error against tokens left", [_front(grid)]),
            *([claims(_claims(grid, least))] if len(layers) > 2 else []),
            Section("All figures", [*_grids(grid), _table(grid)]),
            Section("How it is measured", [INTERVALS, *metrics_used(summary)]),
        ],
        facts=ran_on(summary),
    )  # fmt: skip


def _fewest(grid: Grid, layer: int) -> Fewest | None:
    """The smallest share of tokens at which no difference of the headline could be shown."""
    harmless = [
        (grid.retention(*key), key[1], key[2])
        for key in grid.cells
        if key[0] == layer and holds_zero(grid.score(*key)["difference"])
    ]
    return min(harmless, default=None)


def _card(layer: int, least: Fewest | None) -> Card:
    assert least is not None
    share, threshold, window = least
    return Card(f"{share:.0%}", f"of the tokens suffice at layer {layer}", f"threshold {threshold:g}, window {window}")


def _bearable(grid: Grid, least: dict[int, Fewest | None]) -> Chart:
    return lines(
        "bearable",
        [
            Series(
                "least",
                grid.axis("layer"),
                [found[0] if (found := least[layer]) else 1.0 for layer in grid.axis("layer")],
            )
        ],
        x="layer",
        y="share of audio tokens",
        title="Fewest tokens without a difference that could be shown",
        form=".0%",
    )


def _curves(grid: Grid) -> list[Chart]:
    head, layers, window = grid.headline, grid.axis("layer"), grid.axis("window")[-1]
    shares, errors = [], []
    for at, threshold in enumerate(grid.axis("threshold")):
        name, cells = f"threshold {threshold:g}", [(layer, threshold, window) for layer in layers]
        shares.append(Series(name, layers, [grid.retention(*cell) for cell in cells], colour=at))
        errors.append(curve(name, layers, [grid.score(*cell) for cell in cells], at))
    kept = lines(
        "retention",
        shares,
        x="layer",
        y="audio tokens left",
        title=f"Tokens left, window {window}",
        form=".0%",
        width=NARROW,
    )
    error = lines(
        head["name"],
        errors,
        x="layer",
        y=head["title"],
        title=f"{head['title']}, window {window}",
        baseline=("unpooled", grid.unpooled[head["name"]]["value"]),
        top=1.5 if head["percent"] else None,
        form=".0%" if head["percent"] else ".0f",
        width=NARROW,
    )
    return [kept, error]


def _front(grid: Grid) -> Chart:
    head = grid.headline
    points = [
        Point(
            grid.retention(layer, threshold, window),
            grid.score(layer, threshold, window)["value"],
            "",
            f"layer {layer}",
        )
        for layer in grid.axis("layer")
        for threshold in grid.axis("threshold")
        for window in grid.axis("window")
    ]
    return frontier(
        "tokens",
        points,
        x="audio tokens left",
        y=head["title"],
        baseline=("unpooled", grid.unpooled[head["name"]]["value"]),
        top=1.0 if head["percent"] else None,
        forms=(".0%", form(head)),
    )


def _grids(grid: Grid) -> list[Chart]:
    head = grid.headline
    grids = []
    for window in grid.axis("window"):
        rows = [f"layer {layer}" for layer in grid.axis("layer")]
        columns = [f"{threshold:g}" for threshold in grid.axis("threshold")]
        cells = [[(layer, threshold, window) for threshold in grid.axis("threshold")] for layer in grid.axis("layer")]
        shares = [[grid.retention(*cell) for cell in row] for row in cells]
        errors = [[grid.score(*cell)["value"] for cell in row] for row in cells]
        table = partial(heat, rows=rows, columns=columns, x="threshold", y="layer")
        top = 1.0 if head["percent"] else None
        title = f"{head['title']}, window {window}"
        grids.append(table(f"kept-{window}", values=shares, title=f"Tokens left, window {window}", form=".0%"))
        grids.append(table(f"error-{window}", values=errors, title=title, form=form(head), top=top, colour=1))
    return grids


def _table(grid: Grid) -> Table:
    rows = []
    for window in grid.axis("window"):
        for threshold in grid.axis("threshold"):
            for layer in grid.axis("layer"):
                key = (layer, threshold, window)
                row: list[str | Cell] = [f"layer {layer}, {threshold:g}, window {window}"]
                row.append(f"{grid.retention(*key):.1%}")
                for metric in grid.metrics:
                    score = grid.score(*key, metric=metric)
                    row += [value(metric, score), change(metric, score["difference"])]
                rows.append(row)
    header = ["", "tokens left", *(text for m in grid.metrics for text in (m["title"], "- unpooled, points"))]
    return Table(header, rows)


def _findings(grid: Grid, least: dict[int, Fewest | None]) -> list[str]:
    head = grid.headline
    able = [layer for layer in grid.axis("layer") if least[layer]]
    unable = [str(layer) for layer in grid.axis("layer") if not least[layer]]
    said = [
        f"Layer {layer} can do with **{found[0]:.0%}** of the audio tokens (threshold {found[1]:g}, window {found[2]}) "
        f"without a difference of {head['title']} that could be shown."
        for layer in dict.fromkeys((*able[:1], *able[-1:]))
        if (found := least[layer])
    ]
    if unable:
        said.append(f"At layers {', '.join(unable)} every setting tried changes {head['title']}.")
    return said


def _claims(grid: Grid, least: dict[int, Fewest | None]) -> list[Claim]:
    def share(layer: int) -> float:
        found = least[layer]
        return found[0] if found else 1.0

    first, *middle, deepest = grid.axis("layer")
    shares = [share(layer) for layer in grid.axis("layer")]
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
