"""The charts of the study: curves over layers, error against retention, bars with intervals, and grids.

Hues never tell things apart alone: curves have markers and dashes, and names stand where the curve ends. Nothing is
logarithmic, and bars start at 0. With a ``form`` that ends in ``%`` values are shares of 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from .drawing import (
    DASHES,
    MARKERS,
    TEXT,
    beside,
    finish,
    label_points,
    limits,
    long,
    name_ends,
    new_axes,
    note_above,
    written,
)
from .figures import Chart
from .palette import Palette

Number = float | None
"""None where nothing was measured."""
Interval = tuple[float, float] | None
WIDE, NARROW = 760.0, 430.0
"""Of a chart that fills the page's column, and of one that fits a phone; two narrow ones stand side by side."""


@dataclass(frozen=True)
class Series:
    """A curve, and its band from ``low`` to ``high``."""

    name: str
    xs: Sequence[float]
    ys: Sequence[Number]
    low: Sequence[Number] | None = None
    high: Sequence[Number] | None = None
    colour: int | None = None
    """Hue and marker; None: by its place among the series."""
    dash: int = 0


class Point(NamedTuple):
    """One configuration: what it costs (x) and how wrong it is (y)."""

    x: float
    y: float
    label: str = ""
    series: str = ""
    """Points of one series share a hue and a marker, named above the chart if there are several."""
    interval: Interval = None
    """Of ``y``."""
    chosen: bool = False


@dataclass(frozen=True)
class Bars:
    """One value for each label of the chart."""

    name: str
    values: Sequence[Number]
    intervals: Sequence[Interval] | None = None
    colour: int | None = None
    """Hue; None: by its place among the bars of a label."""


def lines(
    name: str,
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    title: str = "",
    alt: str = "",
    caption: str = "",
    baseline: tuple[str, float] | None = None,
    top: float | None = None,
    form: str = ".1%",
    width: float = WIDE,
    height: float = 270,
) -> Chart:
    """Curves over a whole number such as the layer, bands around them, a dashed line for what is compared with.

    Args:
        name: of the chart's files.
        top: where the y axis ends at most; a value above is written at the edge.
        form: how values are written.
    """
    everything = [value for one in series for values in (one.ys, one.low or (), one.high or ()) for value in values]
    low, high = limits([*everything, baseline[1] if baseline else None], top)
    places = sorted({x for one in series for x in one.xs})
    worst = [
        (at, max((v for one in series for x, v in zip(one.xs, one.ys, strict=True) if x == at and v), default=0.0))
        for at in places
    ]
    cut = [(at, high, written(value, form)) for at, value in worst if value > high]

    def draw(palette: Palette) -> Figure:
        names = [one.name for one in series] + ([baseline[0]] if baseline else [])
        figure, axes = new_axes(palette, width, height, title, y=y, right=34 + long(names), above=16 if cut else 0)
        ends = []
        for at, one in enumerate(series):
            hue = (at if one.colour is None else one.colour) % len(palette.groups)
            last = _curve(axes, palette, one, hue, high)
            ends.append((*last, one.name, palette.groups[hue]))
        if baseline:
            axes.axhline(baseline[1], color=palette.ink, linewidth=1.2, dashes=(5, 3), zorder=1.5)
            ends.append((places[-1], min(baseline[1], high), baseline[0], palette.ink))
        axes.set_ylim(low, high)
        room = 0.02 * (places[-1] - places[0]) or 0.5
        axes.set_xlim(places[0] - room, places[-1] + room)
        finish(axes, palette, x, (None, form))
        if len(places) <= 12:
            axes.set_xticks(places)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        name_ends(axes, palette, ends)
        note_above(axes, palette, cut)
        return figure

    note = f"Where a curve leaves the chart at {written(high, form)}, the largest value is written." if cut else ""
    return Chart(name, draw, alt or f"{title or y} over {x}", f"{caption} {note}".strip())


def _curve(axes: Axes, palette: Palette, one: Series, hue: int, high: float) -> tuple[float, float]:
    """Draw it; returns where it ends."""
    colour = palette.groups[hue]
    xs, ys = np.array(one.xs, float), np.array([nan if value is None else value for value in one.ys], float)
    if one.low is not None and one.high is not None:
        bounds = [np.array([nan if value is None else value for value in side], float) for side in (one.low, one.high)]
        axes.fill_between(xs, *np.minimum(bounds, high), color=colour, alpha=0.16, linewidth=0, zorder=2)
    line = axes.plot(xs, np.minimum(ys, high), color=colour, linewidth=1.9, zorder=3, clip_on=False)[0]
    line.set(linestyle=DASHES[one.dash], marker=MARKERS[hue], markersize=6.5, mec=palette.paper, mew=1)
    known = np.flatnonzero(np.isfinite(ys))
    return (float(xs[known[-1]]), float(min(ys[known[-1]], high))) if len(known) else (float(xs[-1]), high)


def frontier(
    name: str,
    points: Sequence[Point],
    *,
    x: str,
    y: str,
    title: str = "",
    alt: str = "",
    caption: str = "",
    baseline: tuple[str, float] | None = None,
    top: float | None = None,
    forms: tuple[str, str] = (".0%", ".1%"),
    width: float = WIDE,
    height: float = 300,
) -> Chart:
    """Points, and as steps the frontier: the lowest ``y`` reached at each ``x`` or less. A ring is around the chosen.

    Args:
        name: of the chart's files.
        top: where the y axis ends at most; points above are written at the edge.
        forms: how values of x and of y are written.
    """
    everything = [value for point in points for value in (point.y, *(point.interval or ()))]
    low, high = limits([*everything, baseline[1] if baseline else None], top)
    names = list(dict.fromkeys(point.series for point in points))

    def draw(palette: Palette) -> Figure:
        hues = {text: (palette.groups[i % len(MARKERS)], MARKERS[i % len(MARKERS)]) for i, text in enumerate(names)}
        key = [(text, *hues[text]) for text in names] if len(names) > 1 else []
        right = 20 + (long([baseline[0]]) if baseline else 0)
        figure, axes = new_axes(palette, width, height, title, y=y, key=key, right=right)
        best = pareto(points)
        steps = [(best[0].x, min(best[0].y, high))]
        for x_, y_ in [*((point.x, point.y) for point in best[1:]), (max(point.x for point in points), best[-1].y)]:
            steps += [(x_, steps[-1][1]), (x_, min(y_, high))]
        axes.plot(*zip(*steps, strict=True), color=palette.faint, linewidth=1.3)
        for point in points:
            colour, marker = hues[point.series]
            if point.interval:
                axes.vlines(point.x, *np.minimum(point.interval, high), color=colour, linewidth=1.3, alpha=0.6)
            place = (point.x, min(point.y, high))
            axes.plot(*place, marker, color=colour, markersize=8.5, mec=palette.paper, clip_on=False)
            if point.chosen:
                axes.plot(*place, "o", mfc="none", mec=palette.ink, mew=1.6, markersize=15, clip_on=False)
        if baseline:
            axes.axhline(baseline[1], color=palette.ink, linewidth=1.2, dashes=(5, 3), zorder=1.5)
        axes.set_ylim(low, high)
        axes.set_xlim(*limits([point.x for point in points]))
        finish(axes, palette, x, forms)
        axes.grid(axis="x", color=palette.line, linewidth=0.8)
        labels = [(point.x, min(point.y, high), " ".join(filter(None, (point.label, over(point))))) for point in points]
        label_points(axes, palette, labels, steps, baseline)
        return figure

    def over(point: Point) -> str:
        return f"↑ {written(point.y, forms[1])}" if point.y > high else ""

    return Chart(name, draw, alt or f"{title or y} against {x}", caption)


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats or equals in both coordinates, by x."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, point.y)):
        if not best or point.y < best[-1].y:
            best.append(point)
    return best


def bars(
    name: str,
    labels: Sequence[str],
    parts: Sequence[Bars],
    *,
    x: str,
    title: str = "",
    alt: str = "",
    caption: str = "",
    baseline: tuple[str, float] | None = None,
    stacked: bool = False,
    form: str = ".1%",
    width: float = WIDE,
) -> Chart:
    """Horizontal bars, those of one label together, or (``stacked``) one after the other with their sum at the end."""
    thick = 22 if stacked else 18
    step = thick * (1 if stacked else len(parts)) + 16
    several = len(parts) > 1
    values = np.array([[nan if value is None else value for value in part.values] for part in parts], float)
    totals = np.nansum(values, axis=0)
    texts = [written(value, form) for value in (totals if stacked else values.flat)]

    def draw(palette: Palette) -> Figure:
        hues = [palette.groups[(at if part.colour is None else part.colour) % 6] for at, part in enumerate(parts)]
        key = [(part.name, hue, "s") for part, hue in zip(parts, hues, strict=True)] if several else []
        left, right, above = 14 + long(labels), 20 + long(texts), 20 if baseline else 0
        figure, axes = new_axes(palette, width, len(labels) * step, title, key=key, left=left, right=right, above=above)
        places = np.arange(len(labels)) * step
        for at, (part, hue) in enumerate(zip(parts, hues, strict=True)):
            middle = places + (0 if stacked else (at - (len(parts) - 1) / 2) * thick)
            before = np.nansum(values[:at], axis=0) if stacked else np.zeros(len(labels))
            axes.barh(middle, values[at], thick - 3, left=before, color=hue, linewidth=0, zorder=2)
            for y, value, interval in zip(middle, values[at], part.intervals or [None] * len(labels), strict=True):
                if interval:
                    axes.plot(interval, [y, y], color=palette.ink, linewidth=1.4, solid_capstyle="butt", zorder=3)
                if not stacked:
                    end = float(np.nanmax([0, value, *(interval or ())]))
                    beside(axes, palette, (end, y), (6, 0), written(value, form))
        if stacked:
            for y, value in zip(places, totals, strict=True):
                beside(axes, palette, (float(value), float(y)), (6, 0), written(value, form))
        if baseline:
            axes.axvline(baseline[1], color=palette.ink, linewidth=1.2, dashes=(5, 3), zorder=2.5)
        axes.set_ylim((len(labels) - 0.5) * step, -0.5 * step)
        axes.set_xlim(0)
        if baseline:
            note_above(axes, palette, [(baseline[1], -0.5 * step, baseline[0])])
        finish(axes, palette, x, (form, None))
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x", color=palette.line, linewidth=0.8)
        axes.set_yticks(places, labels, color=palette.ink)
        return figure

    return Chart(name, draw, alt or f"{title}: {x}", caption)


def heat(
    name: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[Number]],
    *,
    x: str,
    y: str,
    title: str = "",
    alt: str = "",
    caption: str = "",
    top: float | None = None,
    form: str = ".1%",
    chosen: tuple[int, int] | None = None,
    colour: int = 0,
) -> Chart:
    """A grid with its values written in it, deeper colours for larger values up to ``top``, a frame on the chosen."""
    texts = [[written(value, form) for value in row] for row in values]
    cell = 18 + max(long([text for row in texts for text in row]), long(columns), 28)
    left = 14 + long(rows)
    width = left + cell * len(columns) + 14
    known = [value for row in values for value in row if value is not None and isfinite(value)] or [0.0]
    low, high = min(known), min(max(known), top or max(known))

    def draw(palette: Palette) -> Figure:
        figure, axes = new_axes(palette, width, 32 * len(rows), title, y=y, left=left, right=14)
        gap = 1.5 / cell
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                missing = value is None or not isfinite(value)
                depth = 0.03 if missing else 0.08 + 0.52 * float(np.interp(value or 0, (low, high), (0, 1)))
                box = ((j + gap, i - 0.46), 1 - 2 * gap, 0.92)
                axes.add_patch(Rectangle(*box, color=palette.groups[colour], alpha=depth, linewidth=0))
                if (i, j) == chosen:
                    axes.add_patch(Rectangle(*box, fill=False, edgecolor=palette.ink, linewidth=1.8, zorder=3))
                ink = palette.faint if missing else palette.ink
                axes.text(j + 0.5, i, texts[i][j], color=ink, fontsize=TEXT, ha="center", va="center_baseline")
        axes.set_xlim(0, len(columns))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        finish(axes, palette, x)
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        axes.set_xticks(np.arange(len(columns)) + 0.5, columns, color=palette.ink)
        axes.set_yticks(np.arange(len(rows)), rows, color=palette.ink)
        return figure

    return Chart(name, draw, alt or f"{title}: {y} and {x}", caption)
