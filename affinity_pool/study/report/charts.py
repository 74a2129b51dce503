"""The charts of the study: curves over layers, error against retention, bars with intervals, and grids.

Hues never tell things apart alone: curves have markers and dashes. Nothing is logarithmic, and bars start at 0. With a
``form`` that ends in ``%`` values are shares of 1. Sizes are units of the drawing, a point of matplotlib's and a CSS
pixel where the page is wide enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .figures import MARKERS, UNIT, Chart
from .palette import Palette

Number = float | None
"""None where nothing was measured."""
Interval = Sequence[float | None] | None
"""Low and high, of which none may be known."""
Style = dict[str, Any]
"""Of an artist of matplotlib."""
WIDE, NARROW = 760.0, 430.0
"""Of a chart that fills the page's column, and of one that fits a phone; two narrow ones stand side by side."""
DASHES = ("-", (0, (4, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)))
DASHED = (0, (5, 3))
"""Of what is compared with."""
AROUND = 76.0
"""Height of ticks, names of axes and title."""
LINE = 20.0
"""Of a legend."""


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
        figure, axes = _new(width, height, title, x, y, names, above=LINE if cut else 0)
        for at, one in enumerate(series):
            hue = (at if one.colour is None else one.colour) % len(palette.groups)
            style: Style = {"color": palette.groups[hue], "marker": MARKERS[hue], "linestyle": DASHES[one.dash]}
            if one.low is not None and one.high is not None:
                band = np.minimum([_floats(one.low), _floats(one.high)], high)
                axes.fill_between(one.xs, *band, color=palette.groups[hue], alpha=0.16, linewidth=0)
            axes.plot(one.xs, np.minimum(_floats(one.ys), high), label=one.name, clip_on=False, **style)
        _baseline(axes, palette, baseline)
        axes.set_ylim(low, high)
        room = 0.02 * (places[-1] - places[0]) or 0.5
        axes.set_xlim(places[0] - room, places[-1] + room)
        _write_ticks(axes, y=form)
        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
        if len(places) <= 12:
            axes.set_xticks(places)
        for place, value in cut.items():
            _text(axes, (place, high), (0, 5), format_value(value, form), ha="center", va="bottom")
        if len(names) > 1:
            _legend(figure, width, names)
        return figure

    note = f"Where a curve leaves the chart at {format_value(high, form)}, the largest value is written." if cut else ""
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
        figure, axes = _new(width, height, title, x, y, names)
        best = pareto(points)
        steps = [*((point.x, point.y) for point in best), (max(point.x for point in points), best[-1].y)]
        xs, ys = zip(*steps, strict=True)
        axes.step(
            xs, np.minimum(ys, high), where="post", color=palette.faint, linewidth=1.3, marker="", label="frontier"
        )
        for at, kind in enumerate(kinds):
            style: Style = {"color": palette.groups[at % len(MARKERS)], "marker": MARKERS[at % len(MARKERS)]}
            of = [point for point in points if point.series == kind]
            shown = np.minimum([point.y for point in of], high)
            label = kind if len(kinds) > 1 else None
            axes.plot([p.x for p in of], shown, label=label, linestyle="", markersize=8.5, clip_on=False, **style)
            for point in of:
                if bounds := _known(point.interval):
                    between = np.minimum(bounds, high)
                    axes.vlines(point.x, *between, color=style["color"], linewidth=1.3, alpha=0.6)
        for point in points:
            if point.chosen:
                ring: Style = {"mfc": "none", "mec": palette.ink, "mew": 1.6, "markersize": 15}
                axes.plot(point.x, min(point.y, high), "o", clip_on=False, **ring)
        _baseline(axes, palette, baseline)
        axes.set_ylim(low, high)
        axes.set_xlim(*limits([point.x for point in points]))
        _write_ticks(axes, *forms)
        axes.grid(axis="x")
        _label_points(axes, palette, [(point, min(point.y, high), _label(point, high, forms[1])) for point in points])
        _legend(figure, width, names)
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
    values = np.array([_floats(part.values) for part in parts])
    totals = np.nansum(values, axis=0)
    names = [*((part.name for part in parts) if len(parts) > 1 else ()), *([baseline[0]] if baseline else ())]

    def draw(palette: Palette) -> Figure:
        figure, axes = _new(width, len(labels) * step, title, x, "", names)
        places = np.arange(len(labels)) * step
        for at, part in enumerate(parts):
            hue = palette.groups[(at if part.colour is None else part.colour) % len(palette.groups)]
            middle = places + (0 if stacked else (at - (len(parts) - 1) / 2) * thick)
            before = np.nansum(values[:at], axis=0) if stacked else np.zeros(len(labels))
            label = part.name if len(parts) > 1 else None
            axes.barh(middle, values[at], thick - 3, left=before, color=hue, linewidth=0, label=label)
            for row, value, interval in zip(middle, values[at], part.intervals or [None] * len(labels), strict=True):
                if bounds := _known(interval):
                    axes.plot(bounds, [row, row], color=palette.ink, linewidth=1.4, marker="", solid_capstyle="butt")
                if not stacked:
                    end = float(np.nanmax([0, value, *(bounds or ())]))
                    _text(axes, (end, row), (6, 0), format_value(value, form), va="center")
        if stacked:
            for row, value in zip(places, totals, strict=True):
                _text(axes, (float(value), float(row)), (6, 0), format_value(value, form), va="center")
        _baseline(axes, palette, baseline, upright=True)
        axes.set_ylim((len(labels) - 0.5) * step, -0.5 * step)
        axes.set_xlim(0)
        _write_ticks(axes, form, None)
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x")
        axes.set_yticks(places, labels, color=palette.ink)
        _legend(figure, width, names)
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
    cells = np.array([_floats(row) for row in values])
    known = cells[np.isfinite(cells)] if np.isfinite(cells).any() else np.zeros(1)
    ends = {"vmin": known.min(), "vmax": min(known.max(), top or known.max()) or 1.0}
    longest = max(len(text) for text in (*columns, *(format_value(value, form) for value in cells.flat)))
    width = 60 + 8 * max(map(len, rows)) + max(46, 9 * longest) * len(columns)

    def draw(palette: Palette) -> Figure:
        figure, axes = _new(width, 32 * len(rows), title, x, y, ())
        depth = LinearSegmentedColormap.from_list("depth", [_mixed(palette, colour, share) for share in (0.08, 0.6)])
        axes.imshow(cells, cmap=depth, aspect="auto", interpolation="nearest", **ends)
        axes.set_xticks(range(len(columns)), columns, color=palette.ink)
        axes.set_yticks(range(len(rows)), rows, color=palette.ink)
        for side in ("x", "y"):
            axes.tick_params(axis=side, which="minor", length=0)
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


def limits(values: Sequence[Number], top: float | None = None) -> tuple[float, float]:
    """Ends of an axis with everything on it up to ``top``; from 0 unless the values are far from it."""
    known = [value for value in values if value is not None and isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    start = 0.0 if 0 <= low < 0.6 * high else low - room
    return start, top if top is not None and high > top else high + room


def format_value(value: Number, form: str) -> str:
    """A value, or a dash where there is none."""
    return "–" if value is None or not isfinite(value) else format(value, form)


def _new(
    width: float, height: float, title: str, x: str, y: str, names: Sequence[str], above: float = 0
) -> tuple[Figure, Axes]:
    """Axes of about this height, with room for what stands around them and a legend of these names."""
    whole = height + above + AROUND + (-(-len(names) // _columns(width, names)) * LINE if names else 0)
    figure = Figure(figsize=(width * UNIT, whole * UNIT), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, pad=14 + above)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _legend(figure: Figure, width: float, names: Sequence[str]) -> None:
    if names:
        figure.legend(loc="outside lower left", ncols=_columns(width, names), borderpad=0, columnspacing=1.4)


def _columns(width: float, names: Sequence[str]) -> int:
    """Of a legend: matplotlib does not break its lines."""
    return max(1, min(len(names), int(width // (48 + 8 * max(map(len, names))))))


def _floats(values: Sequence[Number]) -> np.ndarray:
    return np.array([nan if value is None else value for value in values], float)


def _known(interval: Interval) -> list[float]:
    """Both ends, or none."""
    ends = [end for end in interval or () if end is not None]
    return ends if len(ends) == 2 else []


def _mixed(palette: Palette, hue: int, share: float) -> tuple[float, ...]:
    """A hue thinned with the paper."""
    parts = [[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in (palette.groups[hue], palette.paper)]
    return tuple(share * a + (1 - share) * b for a, b in zip(*parts, strict=True))


def _baseline(axes: Axes, palette: Palette, baseline: tuple[str, float] | None, upright: bool = False) -> None:
    if baseline:
        line = axes.axvline if upright else axes.axhline
        line(baseline[1], label=baseline[0], color=palette.ink, linewidth=1.2, linestyle=DASHED)


def _write_ticks(axes: Axes, x: str | None = None, y: str | None = None) -> None:
    """Ticks as values are written, without the digits a round number does not need; None: as set already."""

    def written(value: float, form: str) -> str:
        return f"{value * 100:.6g}%" if form.endswith("%") else f"{value:.6g}"

    for axis, form in ((axes.xaxis, x), (axes.yaxis, y)):
        if form is not None:
            axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
            axis.set_major_formatter(FuncFormatter(lambda value, _, form=form: written(value, form)))


def _text(axes: Axes, place: tuple[float, float], offset: tuple[float, float], text: str, **style: Any) -> None:
    """Text at a distance from a place in the axes."""
    axes.annotate(text, place, xytext=offset, textcoords="offset points", annotation_clip=False, **style)


def _label(point: Point, high: float, form: str) -> str:
    above = f"↑ {format_value(point.y, form)}" if point.y > high else ""
    return " ".join(filter(None, (point.label, above)))


def _label_points(axes: Axes, palette: Palette, labels: Sequence[tuple[Point, float, str]]) -> None:
    """Names beside points, from the left; left out where one before stands in the way."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    taken: list[tuple[float, float]] = []
    for point, y, text in sorted(labels, key=lambda label: label[0].x):
        x_share, y_share = (point.x - left) / (right - left), (y - low) / (high - low)
        if text and all(abs(x_share - a) > 0.2 or abs(y_share - b) > 0.07 for a, b in taken):
            taken.append((x_share, y_share))
            late = x_share > 0.7
            behind = {"facecolor": palette.paper, "alpha": 0.8, "linewidth": 0, "pad": 1}
            align = {"ha": "right" if late else "left", "va": "bottom"}
            _text(axes, (point.x, y), (-11 if late else 11, 5), text, bbox=behind, **align)
