"""A figure of a page: drawn on demand in a palette, as SVG inside the page and as files beside it."""

from __future__ import annotations

import base64
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, wraps
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.text import Text

from ..runs import folders
from .palette import DARK, LIGHT, TOKENS, Palette, coloured

Drawn = ParamSpec("Drawn")

UNIT = 1 / 72
"""Inches of a unit of the drawing, which is a CSS pixel where the page is wide enough."""
DENSITY = 160
"""Pixels an inch."""
SMALLEST = 0.8
"""What a chart may shrink to on a narrow screen: its text of 12.5 pixels is then 10 high. Below that it scrolls."""
FONTS = "system-ui, sans-serif"
CHINESE = ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "PingFang SC", "SimHei")


@dataclass(frozen=True)
class Chart:
    """A figure with what a page says about it."""

    name: str
    """Of its files, without the ending."""
    drawing: Callable[[Palette], Figure]
    alt: str
    caption: str = ""
    raster: bool = False
    """Too many shapes, or pixels, for SVG: the page holds one PNG for light and one for dark."""

    def draw(self, palette: Palette) -> Figure:
        """The figure, its text as it is written."""
        return as_written(self.drawing)(palette)

    def html(self) -> str:
        """The figure for the inside of a page; one that cannot be read at the width there is scrolls."""
        return self._pictures() if self.raster else self._drawing()

    def save(self, folder: Path) -> list[Path]:
        """Write ``NAME.png`` for light and ``NAME-dark.png`` for dark surroundings, and ``NAME.svg`` unless raster."""
        pictures = {folder / f"{self.name}.png": self._light, folder / f"{self.name}-dark.png": self._dark}
        for path, png in pictures.items():
            with folders.writing(path):
                path.write_bytes(png)
        if self.raster:
            return [*pictures]
        drawing = folder / f"{self.name}.svg"
        folders.write(drawing, coloured(self._svg, LIGHT) + "\n")
        return [*pictures, drawing]

    def _pictures(self) -> str:
        light, dark = ("data:image/png;base64," + base64.b64encode(png).decode() for png in (self._light, self._dark))
        width = int.from_bytes(self._light[16:20], "big") / DENSITY / UNIT
        return (
            f'<picture><source media="screen and (prefers-color-scheme: dark)" srcset="{dark}">'
            f'<img src="{light}" alt="{escape(printable(self.alt))}" style="{_sized(width)}"></picture>'
        )

    def _drawing(self) -> str:
        svg = coloured(self._svg)
        width = float(re.search(r'viewBox="0 0 (\S+)', svg).group(1))  # type: ignore[union-attr]
        return svg.replace(
            "<svg ", f'<svg role="img" aria-label="{escape(printable(self.alt))}" style="{_sized(width)}" ', 1
        )

    @cached_property
    def _svg(self) -> str:
        """In ``TOKENS``, with the text as text and with ids that no other figure of a page has."""
        with _style(self.name):
            out = BytesIO()
            self.draw(TOKENS).savefig(out, format="svg", metadata={"Date": None})
        svg = re.sub(r"^.*?(?=<svg)|<metadata>.*?</metadata>|<!--.*?-->", "", out.getvalue().decode(), flags=re.DOTALL)
        svg = re.sub(r'(<svg[^>]*?) width="[^"]*"| height="[^"]*pt"', r"\1", svg)
        svg = re.sub(r"(font: [^;\"]*?px) [^;\"]*", rf"\1 {FONTS}", svg)
        used = set(re.findall(r'(?:url\(|href=")#([^")]+)', svg))
        svg = re.sub(r' id="([^"]*)"', lambda m: f' id="{self.name}-{m.group(1)}"' if m.group(1) in used else "", svg)
        svg = re.sub(r'(url\(|href=")#', rf"\1#{self.name}-", svg)
        return re.sub(r">\s+<", ">\n<", svg).strip()

    @cached_property
    def _light(self) -> bytes:
        return self._png(LIGHT)

    @cached_property
    def _dark(self) -> bytes:
        return self._png(DARK)

    def _png(self, palette: Palette) -> bytes:
        with _style(self.name):
            figure, out = self.draw(palette), BytesIO()
            figure.savefig(out, format="png", dpi=DENSITY, facecolor=palette.paper, metadata={"Software": None})
        return out.getvalue()


def _sized(width: float) -> str:
    return f"width:{width:.0f}px;min-width:{SMALLEST * width:.0f}px"


def as_written(draw: Callable[Drawn, Figure]) -> Callable[Drawn, Figure]:
    """Drawn so that no text is TeX, and without the characters that no font has."""

    @wraps(draw)
    def drawn(*args: Drawn.args, **settings: Drawn.kwargs) -> Figure:
        with _style():
            figure = draw(*args, **settings)
            for text in figure.findobj(Text):
                text.set_text(printable(re.sub(r"[\t\n]", " ", text.get_text())))
        return figure

    return drawn


def printable(text: str) -> str:
    """With U+FFFD for what no page or picture can hold: control characters and lone surrogates."""
    return re.sub("[\0-\x08\x0b-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]", "\ufffd", text)


@contextmanager
def _style(salt: str = "") -> Iterator[None]:
    """Text as it is written, nothing random, and the reader's own settings of matplotlib left out."""
    installed = {font.name for font in fontManager.ttflist}
    chosen: Any = {
        "font.family": ["DejaVu Sans", *(font for font in CHINESE if font in installed)],
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
    }
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(chosen)
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box stands for it
        yield
