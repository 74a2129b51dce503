"""The charts of the study: curves over layers, error against retention, bars with intervals, and grids.

Hues never tell curves apart alone: they have markers and dashes. Nothing is logarithmic, and bars start at 0. With a
``form`` that ends in ``%`` values are shares of 1. Sizes are units of the drawing, a point of matplotlib's and a CSS
pixel where the page is wide enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from .drawing import (
    AROUND,
    LINE,
    Interval,
    Number,
    Style,
    add_legend,
    add_text,
    apart,
    draw_baseline,
    floats,
    format_value,
    hue_and_marker,
    known_ends,
    label_points,
    limits,
    mixed,
    new_axes,
    write_ticks,
)
from .figures import Chart
from .palette import Palette

WIDE, NARROW = 760.0, 430.0
"""Of a chart that fills the page's column, and of one that fits a phone; two narrow ones stand side by side."""
DASHES = ("-", (0, (4, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)))


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
    """Points of one series share a hue and a marker, named in a legend if there are several."""
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
    places = sorted({place for one in series for place in one.xs})
    worst = {
        place: max((v for one in series for x, v in zip(one.xs, one.ys, strict=True) if x == place and v), default=0.0)
        for place in places
    }
    cut = {place: value for place, value in worst.items() if value > high}

    def draw(palette: Palette) -> Figure:
        names = [one.name for one in series] + ([baseline[0]] if baseline else [])
        figure, axes = new_axes(width, height, title, x, y, names, above=LINE if cut else 0)
        for at, one in enumerate(series):
            style = {**hue_and_marker(palette, at if one.colour is None else one.colour), "linestyle": DASHES[one.dash]}
            if one.low is not None and one.high is not None:
                band = np.minimum([floats(one.low), floats(one.high)], high)
                axes.fill_between(one.xs, *band, color=style["color"], alpha=0.16, linewidth=0)
            axes.plot(one.xs, np.minimum(floats(one.ys), high), label=one.name, clip_on=False, **style)
        draw_baseline(axes, palette, baseline)
        axes.set_ylim(low, high)
        room = 0.02 * (places[-1] - places[0]) or 0.5
        axes.set_xlim(places[0] - room, places[-1] + room)
        write_ticks(axes, y=form)
        if len(places) <= 12:
            axes.set_xticks(places)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
        longest = max((len(format_value(value, form)) for value in cut.values()), default=0)
        for place, value in apart(cut, 9 * longest / (width - AROUND) * (places[-1] - places[0])).items():
            add_text(axes, (place, high), (0, 5), format_value(value, form), ha="center", va="bottom")
        if len(names) > 1:
            add_legend(figure, width, names)
        return figure

    edge = format_value(high, form)
    note = f"Where a curve leaves the chart at {edge}, the largest values are written." if cut else ""
    return Chart(name, draw, alt or f"{title or y} over {x}", f"{caption} {note}".strip())


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
    kinds = list(dict.fromkeys(point.series for point in points))
    names = [*(kinds if len(kinds) > 1 else ()), "frontier", *([baseline[0]] if baseline else ())]

    def draw(palette: Palette) -> Figure:
        figure, axes = new_axes(width, height, title, x, y, names)
        best = pareto(points)
        steps = [*((point.x, point.y) for point in best), (max(point.x for point in points), best[-1].y)]
        xs, ys = zip(*steps, strict=True)
        axes.step(
            xs, np.minimum(ys, high), where="post", color=palette.faint, linewidth=1.3, marker="", label="frontier"
        )
        for at, kind in enumerate(kinds):
            style = hue_and_marker(palette, at)
            of = [point for point in points if point.series == kind]
            shown = np.minimum([point.y for point in of], high)
            label = kind if len(kinds) > 1 else None
            axes.plot([p.x for p in of], shown, label=label, linestyle="", markersize=8.5, clip_on=False, **style)
            for point in of:
                if bounds := known_ends(point.interval):
                    between = np.minimum(bounds, high)
                    axes.vlines(point.x, *between, color=style["color"], linewidth=1.3, alpha=0.6)
        for point in points:
            if point.chosen:
                ring: Style = {"mfc": "none", "mec": palette.ink, "mew": 1.6, "markersize": 15}
                axes.plot(point.x, min(point.y, high), "o", clip_on=False, **ring)
        draw_baseline(axes, palette, baseline)
        axes.set_ylim(low, high)
        axes.set_xlim(*limits([point.x for point in points]))
        write_ticks(axes, *forms)
        axes.grid(axis="x")
        labels = [(point.x, min(point.y, high), _label(point, high, forms[1])) for point in points]
        label_points(axes, palette, labels, (width, height))
        add_legend(figure, width, names)
        return figure

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
    values = np.array([floats(part.values) for part in parts])
    totals = np.nansum(values, axis=0)
    names = [*((part.name for part in parts) if len(parts) > 1 else ()), *([baseline[0]] if baseline else ())]

    def draw(palette: Palette) -> Figure:
        figure, axes = new_axes(width, len(labels) * step, title, x, "", names)
        places = np.arange(len(labels)) * step
        for at, part in enumerate(parts):
            hue = palette.groups[(at if part.colour is None else part.colour) % len(palette.groups)]
            middle = places + (0 if stacked else (at - (len(parts) - 1) / 2) * thick)
            before = np.nansum(values[:at], axis=0) if stacked else np.zeros(len(labels))
            label = part.name if len(parts) > 1 else None
            axes.barh(middle, values[at], thick - 3, left=before, color=hue, linewidth=0, label=label)
            for row, value, interval in zip(middle, values[at], part.intervals or [None] * len(labels), strict=True):
                if bounds := known_ends(interval):
                    axes.plot(bounds, [row, row], color=palette.ink, linewidth=1.4, solid_capstyle="butt")
                if not stacked:
                    end = float(np.nanmax([0, value, *bounds]))
                    add_text(axes, (end, row), (6, 0), format_value(value, form), va="center")
        if stacked:
            for row, value in zip(places, totals, strict=True):
                add_text(axes, (float(value), float(row)), (6, 0), format_value(value, form), va="center")
        draw_baseline(axes, palette, baseline, upright=True)
        axes.set_ylim((len(labels) - 0.5) * step, -0.5 * step)
        axes.set_xlim(0)
        write_ticks(axes, form, None)
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x")
        axes.set_yticks(places, labels, color=palette.ink)
        add_legend(figure, width, names)
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
    cells = np.array([floats(row) for row in values])
    known = cells[np.isfinite(cells)] if np.isfinite(cells).any() else np.zeros(1)
    low, high = float(np.min(known)), float(np.max(known))
    high = min(high, top or high) or 1.0
    longest = max(len(text) for text in (*columns, *(format_value(value, form) for value in cells.flat)))
    width = 60 + 8 * max(map(len, rows)) + max(46, 9 * longest) * len(columns)

    def draw(palette: Palette) -> Figure:
        figure, axes = new_axes(width, 32 * len(rows), title, x, y, ())
        depth = LinearSegmentedColormap.from_list("depth", [mixed(palette, colour, share) for share in (0.08, 0.6)])
        axes.imshow(cells, cmap=depth, aspect="auto", interpolation="nearest", vmin=low, vmax=high)
        axes.set_xticks(range(len(columns)), columns, color=palette.ink)
        axes.set_yticks(range(len(rows)), rows, color=palette.ink)
        axes.tick_params(which="minor", length=0)
        axes.set_xticks(np.arange(1, len(columns)) - 0.5, minor=True)
        axes.set_yticks(np.arange(1, len(rows)) - 0.5, minor=True)
        axes.grid(visible=False)
        axes.grid(which="minor", axis="both", color=palette.paper, linewidth=3)
        axes.spines["bottom"].set_visible(False)
        for (row, column), value in np.ndenumerate(cells):
            ink = palette.ink if isfinite(value) else palette.faint
            axes.text(column, row, format_value(value, form), color=ink, ha="center", va="center_baseline")
        if chosen:
            frame: Style = {"fill": False, "edgecolor": palette.ink, "linewidth": 1.8}
            axes.add_patch(Rectangle((chosen[1] - 0.47, chosen[0] - 0.45), 0.94, 0.9, zorder=3, **frame))
        return figure

    return Chart(name, draw, alt or f"{title}: {y} and {x}", caption)


def _label(point: Point, high: float, form: str) -> str:
    above = f"↑ {format_value(point.y, form)}" if point.y > high else ""
    return " ".join(filter(None, (point.label, above)))
