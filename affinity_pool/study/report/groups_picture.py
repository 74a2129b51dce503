"""The picture of a pooled prompt: the recording as the model hears it, its words, and the groups left after each site.

All rows share the time axis. The colour of a group is that of the last site's group it ends up in, so a column of one
colour is one path through the model; grey is a token that stays alone to the end. Rows that do not follow from each
other, such as one a layer, have two colours in turn and grey for single tokens. What is left is written at the right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.textpath import TextPath

from ..data.manifest import Word
from ..groups import Picture, Row, Span, containing
from .drawing import add_text
from .figures import UNIT, Chart, drawn
from .palette import LIGHT, Palette

# Inches, whatever the recording: only the time axis grows with it, and many rows are lower.
ROWS = 4.6
ROW, LOW, LOWEST = 0.64, 0.42, 0.26  # at most, and at least with and without details below the names
BAR = 0.68  # of a row
SOUND = 1.5
RIGHT, TOP, BOTTOM = 1.3, 0.68, 0.56
NARROWEST, WIDEST = 4.5, 37.0
NAME, DETAIL = 11, 9  # font sizes of a row's
LETTER = 0.1  # a letter of a word's label
SECOND = (1.0, 2.4)  # a second takes as little of this as lets the words' labels stand side by side


def chart(picture: Picture, name: str = "groups", caption: str = "") -> Chart:
    """The picture for a page."""
    alt = f"Log-mel spectrogram of {picture.title} with the groups of audio tokens: " + ", ".join(
        f"{row.name} {len(row.spans)}" for row in picture.rows
    )
    return Chart(name, partial(_draw, picture), alt, caption, raster=True)


def draw(picture: Picture, palette: Palette = LIGHT) -> Figure:
    """The picture alone."""
    return drawn(partial(_draw, picture), palette)


def _draw(picture: Picture, palette: Palette) -> Figure:
    """Draw at a scale that keeps single tokens and the words' labels apart; long recordings make wide figures."""
    inner = min(max(picture.end * _inches_a_second(picture.words), NARROWEST), WIDEST)
    low = LOW if any(row.detail for row in picture.rows) else LOWEST
    bars = min(max(ROWS / len(picture.rows), low), ROW) * len(picture.rows)
    names = [TextPath((0, 0), row.name, NAME) for row in picture.rows]
    details = [TextPath((0, 0), row.detail, DETAIL) for row in picture.rows if row.detail]
    before = (max(path.get_extents().width for path in (*names, *details)) + 18) * UNIT
    width, height = before + inner + RIGHT, TOP + SOUND + bars + BOTTOM
    figure = Figure(figsize=(width, height), facecolor=palette.paper)
    left, span = before / width, inner / width
    sound = figure.add_axes((left, (BOTTOM + bars) / height, span, SOUND / height))
    groups = figure.add_axes((left, BOTTOM / height, span, bars / height), sharex=sound)
    for axes in (sound, groups):
        axes.set_facecolor(palette.paper)
        axes.tick_params(colors=palette.faint, labelsize=10, length=3)
        axes.set_yticks([])
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
    _draw_sound(sound, picture, palette)
    _draw_groups(groups, picture, palette, inner / picture.end, bars / len(picture.rows))
    _draw_words(sound, groups, picture, palette)
    figure.text(left, 1 - 0.16 / height, picture.title, color=palette.ink, fontsize=12.5, weight="bold", va="center")
    return figure


def _inches_a_second(words: Sequence[Word]) -> float:
    """Inches a second takes at least."""
    labels = sorted((word.start + word.end, len(word.text)) for word in words)  # twice the middle
    wanted = [(a + b) * LETTER / (later - middle) for (middle, a), (later, b) in pairwise(labels) if later > middle]
    return min(max([SECOND[0], *wanted]), SECOND[1])


def _draw_sound(axes: Axes, picture: Picture, palette: Palette) -> None:
    axes.imshow(
        picture.mel,
        origin="lower",
        aspect="auto",
        extent=(0, picture.seconds, 0, 1),
        cmap=LinearSegmentedColormap.from_list("sound", palette.sound),
        interpolation="bilinear",
    )
    axes.tick_params(labelbottom=False, bottom=False)
    add_text(axes, (0, 0.5), (-9, 0), "log-mel", color=palette.faint, fontsize=10, ha="right", va="center")


def _draw_groups(axes: Axes, picture: Picture, palette: Palette, second: float, row_height: float) -> None:
    axes.set_xlim(0, picture.end)
    axes.set_ylim(len(picture.rows) - 0.5, -0.5)
    axes.set_xlabel("seconds", color=palette.faint, fontsize=10, labelpad=1)
    whole = len(picture.rows[0].spans)
    bars, colours = [], []
    for y, row in enumerate(picture.rows):
        for span, colour in zip(row.spans, _colours(picture, row, palette), strict=True):
            bars.append(_bar(span, y, picture.frame_seconds, second, row_height))
            colours.append(colour)
            if span.end - span.start >= 4:
                middle = (span.start + span.end) / 2 * picture.frame_seconds
                size = f"{span.end - span.start}"
                axes.text(middle, y, size, color=palette.paper, fontsize=8.5, ha="center", va="center_baseline")
        up, down = (6, -8) if row.detail else (0, 0)
        add_text(axes, (0, y), (-9, up), row.name, color=palette.ink, fontsize=NAME, ha="right", va="center")
        add_text(axes, (0, y), (-9, down), row.detail, color=palette.faint, fontsize=DETAIL, ha="right", va="center")
        left = {"color": palette.ink, "fontsize": min(14, 46 * row_height), "weight": "bold"}
        add_text(axes, (picture.end, y), (9, 0), f"{len(row.spans)}", **left, va="center")
        share = "tokens" if y == 0 else f"{len(row.spans) / whole:.0%}"
        add_text(axes, (picture.end, y), (49, -0.5), share, color=palette.faint, fontsize=10, va="center")
    axes.add_collection(PatchCollection(bars, facecolors=colours, linewidths=0))


def _colours(picture: Picture, row: Row, palette: Palette) -> Iterator[str]:
    """Of each span: the last row's group it lies in, or (independent rows) two in turn; grey where it stays alone."""
    last = row.spans if picture.independent else picture.rows[-1].spans
    turn = 0
    for group in containing(row.spans, last):
        if group is None or last[group].end - last[group].start == 1:
            yield palette.alone
        else:
            yield palette.groups[turn % 2 if picture.independent else group % len(palette.groups)]
            turn += 1


def _bar(span: Span, y: int, frame: float, second: float, row_height: float) -> FancyBboxPatch:
    """One group: a bar as long as the time it stands for, with round corners."""
    gap = 0.16 * frame
    length = (span.end - span.start) * frame - gap
    return FancyBboxPatch(
        (span.start * frame + gap / 2, y - BAR / 2),
        length,
        BAR,
        boxstyle=f"round,pad=0,rounding_size={min(0.04 / second, length / 2):.4f}",
        mutation_aspect=second / row_height,
    )


def _draw_words(sound: Axes, groups: Axes, picture: Picture, palette: Palette) -> None:
    """Words above, their edges as lines through everything; one edge where two words touch."""
    words = [word for word in picture.words if word.start < picture.seconds]
    for edge in sorted({min(edge, picture.seconds) for word in words for edge in (word.start, word.end)}):
        for axes in (sound, groups):
            axes.axvline(edge, color=palette.ink, linewidth=0.8, alpha=0.5, dashes=(3, 2))
    for word in words:
        middle = (word.start + min(word.end, picture.seconds)) / 2
        sound.text(middle, 1.07, word.text, color=palette.ink, fontsize=11, ha="center", va="center")
