"""What the charts have in common: axes with room for what stands around them, and text that keeps apart.

All sizes are units of the drawing: a unit is a point of matplotlib's and a CSS pixel where the page is wide enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import isfinite
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .figures import UNIT
from .palette import Palette

TEXT = 12.5
LINE = 16.0
"""From one line of text to the next."""
BELOW = 46.0
"""Room for the ticks and the name of the x axis."""
PLACES = ((1, 0), (1, 11), (1, -11), (-1, 0), (-1, 11), (-1, -11), (0, 17), (0, -17))
"""Where the name of a point may stand: side, and how far up."""
MARKERS = "osD^vP"
"""One a hue."""
DASHES = ("-", (0, (4, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)))


def new_axes(
    palette: Palette,
    width: float,
    height: float,
    title: str,
    *,
    y: str = "",
    key: Sequence[tuple[str, str, str]] = (),
    left: float = 52,
    right: float = 20,
    above: float = 0,
) -> tuple[Figure, Axes]:
    """Axes of this height in a figure of this width, below title, key (name, colour, marker) and name of the y axis."""
    marks, lines = _key(key, width)
    under_title = 30 if title else 2
    under_key = under_title + (lines * LINE + 14 if key else 0)
    top = max(under_key + (26 if y else 0), 8) + above
    whole = top + height + BELOW
    figure = Figure(figsize=(width * UNIT, whole * UNIT), dpi=72, facecolor="none")
    figure.text(0, 1 - 11 / whole, title, color=palette.ink, fontsize=13.5, weight="bold", va="center")
    figure.text(0, 1 - (under_key + 10) / whole, y, color=palette.faint, fontsize=TEXT, va="center")
    for x, line, name, colour, marker in marks:
        at = 1 - (under_title + 10 + line * LINE) / whole
        figure.add_artist(Line2D([x / width], [at], color=colour, marker=marker, markersize=8, linestyle="", mew=0))
        figure.text((x + 11) / width, at, name, color=palette.ink, fontsize=TEXT, va="center")
    axes = figure.add_axes((left / width, BELOW / whole, (width - left - right) / width, height / whole))
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(palette.faint)
        spine.set_linewidth(0.8)
    axes.tick_params(colors=palette.faint, labelsize=TEXT, length=0, pad=6)
    return figure, axes


def _key(key: Sequence[tuple[str, str, str]], width: float) -> tuple[list[tuple[float, int, str, str, str]], int]:
    """Where each mark goes (x, line), in as many lines as they need."""
    x, line, marks = 5.0, 0, []
    for name, colour, marker in key:
        if x > 5 and x + 11 + long([name]) > width:
            x, line = 5.0, line + 1
        marks.append((x, line, name, colour, marker))
        x += 34 + long([name])
    return marks, line + 1


def finish(axes: Axes, palette: Palette, x: str, forms: tuple[str | None, str | None] = (None, None)) -> None:
    """Ticks written as their values are (None: as set already), a faint grid along y, the name of the x axis."""
    for axis, form in zip((axes.xaxis, axes.yaxis), forms, strict=True):
        if form is not None:
            axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
            axis.set_major_formatter(FuncFormatter(lambda value, _, form=form: tick(value, form)))
    axes.set_xlabel(x, color=palette.faint, fontsize=TEXT, labelpad=6)
    axes.grid(axis="y", color=palette.line, linewidth=0.8)


def written(value: float | None, form: str) -> str:
    """A value, or a dash where there is none."""
    return "–" if value is None or not isfinite(value) else format(value, form)


def tick(value: float, form: str) -> str:
    """As values are written, without the digits a round number does not need."""
    return f"{value * 100:.6g}%" if form.endswith("%") else f"{value:.6g}"


def long(texts: Sequence[str]) -> float:
    """Room for the longest: letters are about as wide as those of DejaVu Sans, which is wider than most."""
    return TEXT * max((sum(map(_letter, text)) for text in texts), default=0.0)


def _letter(letter: str) -> float:
    if letter > "\u2e7f":  # Chinese
        return 1.0
    return 0.36 if letter in "fijlrtI .,:;'|()[]" else 0.95 if letter in "mwMW%×→≤≥" else 0.62


def limits(values: Sequence[float | None], top: float | None = None) -> tuple[float, float]:
    """Ends of an axis with everything on it up to ``top``; from 0 unless the values are far from it."""
    known = [value for value in values if value is not None and isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    start = 0.0 if 0 <= low < 0.6 * high else low - room
    return start, top if top is not None and high > top else high + room


def name_ends(axes: Axes, palette: Palette, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Names of curves beside their ends (x, y, name, colour), moved apart, each with a line to its curve."""
    wanted = [axes.transData.transform((x, y))[1] - axes.bbox.y0 for x, y, _, _ in ends]
    for (x, y, name, colour), start, at in zip(ends, wanted, apart(wanted, LINE, axes.bbox.height), strict=True):
        lead = {"arrowstyle": "-", "color": colour, "linewidth": 1, "shrinkA": 2, "shrinkB": 5, "relpos": (0, 0.5)}
        beside(axes, palette, (x, y), (18, at - start), name, arrowprops=lead)


def note_above(axes: Axes, palette: Palette, notes: Sequence[tuple[float, float, str]]) -> None:
    """Texts (x, y, text) above points at the upper edge, moved apart."""
    wanted = [axes.transData.transform((x, y))[0] - axes.bbox.x0 for x, y, _ in notes]
    least = long([text for *_, text in notes]) + 8
    for (x, y, text), start, at in zip(notes, wanted, apart(wanted, least, axes.bbox.width), strict=True):
        beside(axes, palette, (x, y), (at - start, 13), text, ha="center")


def beside(
    axes: Axes, palette: Palette, place: tuple[float, float], offset: tuple[float, float], text: str, **style: Any
) -> None:
    """Text at a distance from a place in the axes."""
    axes.annotate(
        text, place, xytext=offset, textcoords="offset points", va="center", color=palette.ink, fontsize=TEXT,
        annotation_clip=False, **style,
    )  # fmt: skip


def apart(wanted: Sequence[float], least: float, end: float) -> list[float]:
    """The same places, in the same order, at least ``least`` from each other and, where they fit, within 0 to end."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[tuple[float, int]] = []  # middle and size of names that touch
    for i in order:
        blocks.append((wanted[i], 1))
        while len(blocks) > 1 and blocks[-1][0] - blocks[-2][0] < least * (blocks[-1][1] + blocks[-2][1]) / 2:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [((a * n + b * m) / (n + m), n + m)]
    places = [middle + least * (k - (size - 1) / 2) for middle, size in blocks for k in range(size)]
    shift = max(0.0, -places[0]) if places else 0.0
    shift -= max(0.0, places[-1] + shift - end) if places else 0.0
    found = [0.0] * len(wanted)
    for i, place in zip(order, places, strict=True):
        found[i] = place + shift
    return found


def label_points(
    axes: Axes,
    palette: Palette,
    points: Sequence[tuple[float, float, str]],
    steps: Sequence[tuple[float, float]],
    baseline: tuple[str, float] | None,
) -> None:
    """Names beside points (x, y, name), each where it covers no point, name or line; left out where there is no room.

    ``steps`` are the corners of the frontier. The name of the baseline is at its right end.
    """
    scale, edges = axes.transData.transform, axes.bbox
    taken = [(x - 8, y - 8, x + 8, y + 8) for x, y in scale([point[:2] for point in points])]
    taken += [(*(np.minimum(a, b) - 1), *(np.maximum(a, b) + 1)) for a, b in pairwise(scale(steps))]
    if baseline:
        y = scale((0, baseline[1]))[1]
        taken += [(edges.x0, y - 1, edges.x1, y + 1), (edges.x1, y - LINE / 2, np.inf, y + LINE / 2)]
        beside(axes, palette, (axes.get_xlim()[1], baseline[1]), (6, 0), baseline[0])
    for at in sorted(range(len(points)), key=lambda at: points[at][0]):
        *place, name = points[at]
        x, y = scale(place)
        for side, up in PLACES if name else ():
            left = x + 11 * side - long([name]) * (1 - side) / 2
            box = (left, y + up - 7, left + long([name]), y + up + 7)
            if edges.x0 < left and box[2] < edges.x1 + 20 and not any(_meet(box, other) for other in taken):
                taken.append(box)
                beside(axes, palette, (place[0], place[1]), (11 * side, up), name, ha=("center", "left", "right")[side])
                break


def _meet(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
