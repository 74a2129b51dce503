"""What the charts have in common: axes with room around them, legends, text beside points, values as text.

Sizes are units of the drawing, a point of matplotlib's and a CSS pixel where the page is wide enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, nan
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .figures import MARKERS, UNIT
from .palette import Palette

Number = float | None
"""None where nothing was measured."""
Interval = Sequence[float | None] | None
"""Low and high, of which none may be known."""
Style = dict[str, Any]
"""Of an artist of matplotlib."""
DASHED = (0, (5, 3))
"""Of what is compared with."""
AROUND = 76.0
"""Height of ticks, names of axes and title."""
LINE = 20.0
"""Of a legend."""


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


def new_axes(
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


def add_legend(figure: Figure, width: float, names: Sequence[str]) -> None:
    if names:
        figure.legend(loc="outside lower left", ncols=_columns(width, names), borderpad=0, columnspacing=1.4)


def _columns(width: float, names: Sequence[str]) -> int:
    """Of a legend: matplotlib does not break its lines."""
    return max(1, min(len(names), int(width // (48 + 8 * max(map(len, names))))))


def floats(values: Sequence[Number]) -> np.ndarray:
    return np.array([nan if value is None else value for value in values], float)


def known_ends(interval: Interval) -> list[float]:
    """Both ends, or none."""
    ends = [end for end in interval or () if end is not None]
    return ends if len(ends) == 2 else []


def hue_and_marker(palette: Palette, at: int) -> Style:
    """Of a curve by its place: with more curves than hues a hue comes again with another marker."""
    hues = len(palette.groups)
    return {"color": palette.groups[at % hues], "marker": MARKERS[(at + at // hues) % len(MARKERS)]}


def apart(values: dict[float, float], least: float) -> dict[float, float]:
    """Without those nearer than ``least`` to a larger one."""
    kept: dict[float, float] = {}
    for place, value in sorted(values.items(), key=lambda item: -item[1]):
        if all(abs(place - other) >= least for other in kept):
            kept[place] = value
    return kept


def mixed(palette: Palette, hue: int, share: float) -> tuple[float, ...]:
    """A hue thinned with the paper."""
    parts = [[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in (palette.groups[hue], palette.paper)]
    return tuple(share * a + (1 - share) * b for a, b in zip(*parts, strict=True))


def draw_baseline(axes: Axes, palette: Palette, baseline: tuple[str, float] | None, upright: bool = False) -> None:
    if baseline:
        line = axes.axvline if upright else axes.axhline
        line(baseline[1], label=baseline[0], color=palette.ink, linewidth=1.2, linestyle=DASHED)


def write_ticks(axes: Axes, x: str | None = None, y: str | None = None) -> None:
    """Ticks as values are written, without the digits a round number does not need; None: as set already."""

    def rounded(value: float, form: str) -> str:
        return f"{value * 100:.6g}%" if form.endswith("%") else f"{value:.6g}"

    for axis, form in ((axes.xaxis, x), (axes.yaxis, y)):
        if form is not None:
            axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
            axis.set_major_formatter(FuncFormatter(lambda value, _, form=form: rounded(value, form)))


def add_text(axes: Axes, place: tuple[float, float], offset: tuple[float, float], text: str, **style: Any) -> None:
    """Text at a distance from a place in the axes."""
    axes.annotate(text, place, xytext=offset, textcoords="offset points", annotation_clip=False, **style)


def label_points(
    axes: Axes, palette: Palette, labels: Sequence[tuple[float, float, str]], size: tuple[float, float]
) -> None:
    """Names beside points (x, y, name), each where it covers no point and no name; left out where there is no room.

    ``size`` is that of the axes, about: letters are about 8 wide.
    """
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    places = [((x - left) / (right - left) * size[0], (y - low) / (high - low) * size[1]) for x, y, _ in labels]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    for (x, y, text), (across, up) in sorted(zip(labels, places, strict=True)):
        width = 8 * len(text)
        for side, lift in ((1, 1), (-1, 1), (1, -1), (-1, -1)) if text else ():
            begin, bottom = across + (9 if side > 0 else -9 - width), up + (5 if lift > 0 else -20)
            box = (begin, bottom, begin + width, bottom + 15)
            if begin >= 0 and box[2] <= size[0] and not any(_meet(box, other) for other in taken):
                taken.append(box)
                align = {"ha": "left" if side > 0 else "right", "va": "bottom" if lift > 0 else "top"}
                add_text(axes, (x, y), (11 * side, 5 * lift), text, color=palette.ink, **align)
                break


def _meet(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
