"""The picture of a pooled prompt: the recording as the model hears it, its words, and the groups left after each site.

All rows share the time axis. The colour of a group is that of the last site's group it ends up in, so a column of one
colour is one path through the model; grey is a token that stays alone to the end. What is left is written at the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from ..data.manifest import Word
from ..groups import Span, containing


@dataclass(frozen=True)
class Palette:
    """The colours of a page, light or dark."""

    paper: str
    ink: str
    faint: str
    alone: str
    sound: tuple[str, ...]
    groups: tuple[str, ...]


LIGHT = Palette(
    paper="#ffffff",
    ink="#1c2430",
    faint="#7a8594",
    alone="#c6ccd4",
    sound=("#ffffff", "#dfe6ee", "#8fa3b8", "#34465a", "#111a26"),
    groups=("#2f7fc1", "#e8833a", "#3a9d73", "#c8527d", "#8067b7", "#c9a227"),
)
DARK = Palette(
    paper="#12161c",
    ink="#e6eaf0",
    faint="#8b96a5",
    alone="#424c59",
    sound=("#12161c", "#1f2c3b", "#3f6788", "#9cc4dd", "#f2f8fc"),
    groups=("#58a6e8", "#f09a55", "#4fbf8e", "#e2729a", "#a28ee0", "#dcba4a"),
)
PALETTES = {"light": LIGHT, "dark": DARK}


@dataclass(frozen=True)
class Row:
    """One line of bars: the audio tokens, or the groups left after a site."""

    name: str
    detail: str
    spans: Sequence[Span]


@dataclass(frozen=True)
class Picture:
    """All that is drawn."""

    title: str
    mel: np.ndarray
    """``[bins, frames]`` log-mel spectrogram of the recording, without the padding."""
    seconds: float
    frame_seconds: float
    words: Sequence[Word]
    rows: Sequence[Row]
    """From the encoder's tokens to the last site."""

    @property
    def end(self) -> float:
        """Seconds at the right edge: the last token may reach past the recording."""
        return max(self.seconds, self.rows[0].spans[-1].end * self.frame_seconds)


# Inches, whatever the recording: only the time axis grows with it.
ROW = 0.62
BAR = 0.68  # of a row
SOUND = 1.5
LEFT, RIGHT, TOP, BOTTOM = 1.5, 1.0, 0.66, 0.46
NARROWEST, WIDEST = 4.5, 37.0
LETTER = 0.085  # a letter of a word's label
SECOND = (1.05, 2.4)  # a second takes as little of this as lets the words' labels stand side by side


def draw(picture: Picture, palette: Palette = LIGHT) -> Figure:
    """Draw at a scale that keeps single tokens and the words' labels apart; long recordings make wide figures."""
    inner = min(max(picture.end * _inches_a_second(picture.words), NARROWEST), WIDEST)
    bars = ROW * len(picture.rows)
    width, height = LEFT + inner + RIGHT, TOP + SOUND + bars + BOTTOM
    figure = Figure(figsize=(width, height), facecolor=palette.paper)
    left, span = LEFT / width, inner / width
    sound = figure.add_axes((left, (BOTTOM + bars) / height, span, SOUND / height))
    groups = figure.add_axes((left, BOTTOM / height, span, bars / height), sharex=sound)
    for axes in (sound, groups):
        axes.set_facecolor(palette.paper)
        axes.tick_params(colors=palette.faint, labelsize=8, length=3)
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
    _draw_sound(sound, picture, palette)
    _draw_groups(groups, picture, palette, inner / picture.end)
    _draw_words(sound, groups, picture, palette)
    figure.text(left, 1 - 0.2 / height, picture.title, color=palette.ink, fontsize=10.5, weight="bold", va="center")
    return figure


def _inches_a_second(words: Sequence[Word]) -> float:
    """Inches a second takes at least."""
    wanted = [
        (len(word.text) + len(later.text)) * LETTER / (later.start + later.end - word.start - word.end)
        for word, later in pairwise(words)
    ]
    return min(max([SECOND[0], *wanted]), SECOND[1])


def save(picture: Picture, folder: Path, name: str) -> dict[str, Path]:
    """Write the picture as a PNG for light and one for dark pages; returns them by palette."""
    paths = {}
    for kind, palette in PALETTES.items():
        paths[kind] = folder / (f"{name}.png" if kind == "light" else f"{name}-{kind}.png")
        draw(picture, palette).savefig(paths[kind], dpi=160, bbox_inches="tight", pad_inches=0.15)
    return paths


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
    _beside(axes, 0, 0.5, (-9, 0), "log-mel", color=palette.faint, fontsize=8.5, ha="right")


def _draw_groups(axes: Axes, picture: Picture, palette: Palette, inches_a_second: float) -> None:
    axes.set_xlim(0, picture.end)
    axes.set_ylim(len(picture.rows) - 0.5, -0.5)
    axes.set_xlabel("seconds", color=palette.faint, fontsize=8.5, labelpad=1)
    last = picture.rows[-1].spans
    whole = len(picture.rows[0].spans)
    for y, row in enumerate(picture.rows):
        for span, group in zip(row.spans, containing(row.spans, last), strict=True):
            alone = group is None or last[group].end - last[group].start == 1
            colour = palette.alone if alone or group is None else palette.groups[group % len(palette.groups)]
            _draw_bar(axes, span, y, picture.frame_seconds, colour, inches_a_second)
            if span.end - span.start >= 4:
                middle = (span.start + span.end) / 2 * picture.frame_seconds
                size = f"{span.end - span.start}"
                axes.text(middle, y, size, color=palette.paper, fontsize=7.5, ha="center", va="center_baseline")
        _beside(axes, 0, y, (-9, 4), row.name, color=palette.ink, fontsize=9.5, ha="right")
        _beside(axes, 0, y, (-9, -8), row.detail, color=palette.faint, fontsize=7, ha="right")
        _beside(axes, picture.end, y, (9, 0), f"{len(row.spans)}", color=palette.ink, fontsize=13, weight="bold")
        share = "tokens" if y == 0 else f"{len(row.spans) / whole:.0%}"
        _beside(axes, picture.end, y, (44, -0.5), share, color=palette.faint, fontsize=8.5)


def _draw_bar(axes: Axes, span: Span, y: int, frame: float, colour: str, inches_a_second: float) -> None:
    """One group: a bar as long as the time it stands for."""
    gap = 0.16 * frame
    length = (span.end - span.start) * frame - gap
    axes.add_patch(
        FancyBboxPatch(
            (span.start * frame + gap / 2, y - BAR / 2),
            length,
            BAR,
            boxstyle=f"round,pad=0,rounding_size={min(0.04 / inches_a_second, length / 2):.4f}",
            mutation_aspect=inches_a_second / ROW,
            linewidth=0,
            facecolor=colour,
        )
    )


def _beside(axes: Axes, x: float, y: float, points: tuple[float, float], text: str, **style: Any) -> None:
    """Text at a distance in points from a place in the axes."""
    axes.annotate(text, (x, y), xytext=points, textcoords="offset points", va="center", annotation_clip=False, **style)


def _draw_words(sound: Axes, groups: Axes, picture: Picture, palette: Palette) -> None:
    """Words above, their edges as lines through everything; one edge where two words touch."""
    words = [word for word in picture.words if word.start < picture.seconds]
    for edge in sorted({min(edge, picture.seconds) for word in words for edge in (word.start, word.end)}):
        for axes in (sound, groups):
            axes.axvline(edge, color=palette.faint, linewidth=0.7, alpha=0.75, dashes=(3, 2))
    for word in words:
        middle = (word.start + min(word.end, picture.seconds)) / 2
        sound.text(middle, 1.07, word.text, color=palette.ink, fontsize=9, ha="center", va="center")
