"""A figure of a page: drawn on demand in light and in dark, as pictures inside the page and as files beside it."""

from __future__ import annotations

import base64
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.text import Text

from ..runs import folders
from .palette import DARK, LIGHT, Palette

UNIT = 1 / 72
"""Inches of a unit of the drawing, which is a CSS pixel where the page is wide enough."""
DENSITY = 160
"""Pixels an inch."""
SMALLEST = 0.8
"""What a chart may shrink to on a narrow screen: its text of 12.5 pixels is then 10 high. Below that it scrolls."""
TEXT = 12.5
CHINESE = ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "PingFang SC", "SimHei")
MARKERS = "osD^vP"
"""One a hue."""


@dataclass(frozen=True)
class Chart:
    """A figure with what a page says about it."""

    name: str
    """Of its files, without the ending."""
    drawing: Callable[[Palette], Figure]
    alt: str
    caption: str = ""
    raster: bool = False
    """Too many shapes, or pixels, for SVG: PNG."""

    def draw(self, palette: Palette) -> Figure:
        """The figure, its text as it is written."""
        return drawn(self.drawing, palette, self.name)

    def html(self) -> str:
        """Light and dark for the inside of a page; a figure that cannot be read at the width there is scrolls.

        Each is a document of its own inside ``<img>``, so no id or style of one meets another's.
        """
        kind = "image/png" if self.raster else "image/svg+xml"
        (image, width), (dark_image, _) = self._images[LIGHT], self._images[DARK]
        light, dark = (f"data:{kind};base64,{base64.b64encode(data).decode()}" for data in (image, dark_image))
        size = f"width:{width:.0f}px;min-width:{SMALLEST * width:.0f}px"
        return (
            f'<picture><source media="screen and (prefers-color-scheme: dark)" srcset="{dark}">'
            f'<img src="{light}" alt="{escape(printable(self.alt))}" style="{size}"></picture>'
        )

    def save(self, folder: Path) -> list[Path]:
        """Write ``NAME.png`` for light and ``NAME-dark.png`` for dark surroundings, and ``NAME.svg`` unless raster."""
        pictures = self._images if self.raster else {palette: self._image(palette, "png") for palette in (LIGHT, DARK)}
        files = {folder / f"{self.name}.png": pictures[LIGHT][0], folder / f"{self.name}-dark.png": pictures[DARK][0]}
        if not self.raster:
            files[folder / f"{self.name}.svg"] = self._images[LIGHT][0]
        for path, image in files.items():
            with folders.writing(path):
                path.write_bytes(image)
        return [*files]

    @cached_property
    def _images(self) -> dict[Palette, tuple[bytes, float]]:
        """What a page shows."""
        return {palette: self._image(palette, "png" if self.raster else "svg") for palette in (LIGHT, DARK)}

    def _image(self, palette: Palette, form: str) -> tuple[bytes, float]:
        """A file, the same each time (no date, no random ids), and the width of the drawing."""
        with styled(palette, salt=self.name):
            figure, out = self.draw(palette), BytesIO()
            about = {"Software": None} if form == "png" else {"Date": None, "Creator": None}
            figure.savefig(out, format=form, dpi=DENSITY, facecolor=palette.paper, metadata=about)
        return out.getvalue(), float(figure.get_figwidth()) / UNIT


def drawn(draw: Callable[[Palette], Figure], palette: Palette, salt: str = "") -> Figure:
    """A figure whose text is as it is written: no TeX, and U+FFFD for characters that no font has."""
    with styled(palette, salt):
        figure = draw(palette)
        for text in figure.findobj(Text):
            text.set_text(printable(re.sub(r"[\t\n]", " ", text.get_text())))
    return figure


def printable(text: str) -> str:
    """With U+FFFD for what no page or picture can hold: control characters, lone surrogates, non-characters."""
    return re.sub("[\0-\x08\x0b-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", text)


@contextmanager
def styled(palette: Palette, salt: str = "") -> Iterator[None]:
    """The one style of all figures, and nothing of the reader's own settings."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_style(palette, salt))
        warnings.filterwarnings("ignore", "constrained_layout not applied")  # names longer than the chart is wide
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box stands for it
        yield


def _style(palette: Palette, salt: str) -> Any:
    axis = {"labelsize": TEXT, "major.size": 0, "major.pad": 6}
    return {
        "font.family": ["sans-serif"],
        "font.sans-serif": ["DejaVu Sans", *_chinese()],
        "font.size": TEXT,
        "text.color": palette.ink,
        "text.parse_math": False,
        "figure.dpi": 72,
        "figure.facecolor": palette.paper,
        "figure.constrained_layout.w_pad": 0.08,
        "figure.constrained_layout.h_pad": 0.08,
        "axes.facecolor": "none",
        "axes.edgecolor": palette.faint,
        "axes.labelcolor": palette.faint,
        "axes.titlelocation": "left",
        "axes.titlesize": 13.5,
        "axes.titleweight": "bold",
        "axes.titlepad": 14,
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.grid.axis": "y",
        **{f"axes.spines.{side}": False for side in ("left", "right", "top")},
        **{f"{name}.{key}": value for name in ("xtick", "ytick") for key, value in axis.items()},
        "xtick.color": palette.faint,
        "ytick.color": palette.faint,
        "grid.color": palette.line,
        "legend.frameon": False,
        "legend.fontsize": TEXT,
        "lines.linewidth": 1.9,
        "lines.markersize": 7.5,
        "lines.markeredgecolor": palette.paper,
        "svg.fonttype": "none",  # text is text: sharp, and a third of the size
        "svg.hashsalt": salt,
    }


@cache
def _chinese() -> list[str]:
    installed = {font.name for font in fontManager.ttflist}
    return [font for font in CHINESE if font in installed]
