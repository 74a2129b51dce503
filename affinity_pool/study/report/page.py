"""A page: one HTML file with everything in it, light or dark as the reader's system is, and its figures as files.

An experiment says what it found as a ``Page``, and ``templates`` says what that looks like. Text is escaped, and U+FFFD
stands for what HTML cannot hold; in paragraphs, findings and captions ``**words**`` are bold, `` `words` `` code.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ..runs import folders
from .figures import Chart, printable
from .palette import DARK, LIGHT


class Card(NamedTuple):
    """One figure to see first."""

    figure: str
    what: str
    detail: str = ""


class Cell(NamedTuple):
    """An entry of a table that is not plain text."""

    text: str
    kind: Literal["good", "bad", "faint", "strong"]


@dataclass(frozen=True)
class Table:
    """The first column is at the left, the others are numbers at the right; wide tables scroll in their box."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    caption: str = ""
    strong: Collection[int] = ()
    """Rows to stand out, such as a total: their places, from the end if negative."""
    prose: bool = False
    """The columns hold sentences: all are at the left and wrap."""

    def is_strong(self, row: int) -> bool:
        return row in self.strong or row - len(self.rows) in self.strong


@dataclass(frozen=True)
class Answers:
    """What was said about one recording, line by line."""

    title: str
    detail: str
    lines: Sequence[tuple[str, str | Sequence[tuple[str, str]]]]
    """Who says it, and the text, or its words each with its mark of :func:`affinity_pool.study.metrics.wer.marked`."""


Block = str | Table | Chart | Answers
"""A string is a paragraph. Charts that follow each other stand side by side where there is room."""


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]

    def kinds(self) -> Iterator[tuple[str, list[Block]]]:
        """Blocks of one class that follow each other, with its name."""
        return ((kind, list(blocks)) for kind, blocks in groupby(self.blocks, key=lambda block: type(block).__name__))


@dataclass(frozen=True)
class Page:
    title: str
    lead: str
    cards: Sequence[Card] = ()
    findings: Sequence[str] = ()
    sections: Sequence[Section] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What it ran on; None is shown as not installed."""


def write(page: Page, folder: Path) -> list[Path]:
    """Write ``index.html`` and the files of every figure into ``folder``."""
    with folders.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    index = folder / "index.html"
    folders.write(index, html(page))
    charts = [block for section in page.sections for block in section.blocks if isinstance(block, Chart)]
    return [index, *(path for chart in charts for path in chart.save(folder))]


def html(page: Page) -> str:
    """The same page gives the same bytes."""
    template = _templates().get_template("page.html")
    return printable(template.render(page=page, light=LIGHT.variables(), dark=DARK.variables()))


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader(__package__), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    templates.filters["inline"] = _inline
    return templates


def _inline(text: str) -> Markup:
    """A text's bold and code."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", marked))
