"""A page: one HTML file with everything in it, light or dark as the reader's system is, and its figures as files.

An experiment says what it found as a ``Page``; nothing here knows any experiment. Text is escaped, and U+FFFD stands
for what HTML cannot hold; in paragraphs, findings and captions ``**words**`` are bold and `` `words` `` are code.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..runs import folders
from .figures import Chart, printable
from .style import STYLESHEET


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
    lines = "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(page.title)}</title>\n<style>{STYLESHEET}</style>",
            f'<h1>{escape(page.title)}</h1>\n<p class="lead">{_inline(page.lead)}</p>',
            *_wrapped('<div class="cards">', map(_card, page.cards), "</div>"),
            *_wrapped("<ul>", (f"<li>{_inline(finding)}</li>" for finding in page.findings), "</ul>"),
            *(line for section in page.sections for line in _section(section)),
            *_facts(page.facts),
            "</html>\n",
        ]
    )
    return printable(lines)


def _wrapped(start: str, lines: Iterator[str], end: str) -> list[str]:
    inside = list(lines)
    return [start, *inside, end] if inside else []


def _inline(text: str) -> str:
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text)


def _card(card: Card) -> str:
    figure, what, detail = map(escape, card)
    return f'<div class="card"><b>{figure}</b><span>{what}</span><small>{detail}</small></div>'


def _section(section: Section) -> Iterator[str]:
    yield f"\n<h2>{escape(section.title)}</h2>"
    for kind, blocks in groupby(section.blocks, key=type):
        inside = map(_block, blocks)
        yield from _wrapped('<div class="figures">', inside, "</div>") if kind is Chart else inside


def _block(block: Block) -> str:
    if isinstance(block, Chart):
        caption = f"<figcaption>{_inline(block.caption)}</figcaption>" if block.caption else ""
        return f'<figure><div class="scroll">{block.html()}</div>{caption}</figure>'
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Answers):
        lines = "".join(f"<dt>{escape(who)}</dt><dd>{_said(text)}</dd>" for who, text in block.lines)
        return f"<h3>{escape(block.title)} <small>{escape(block.detail)}</small></h3><dl>{lines}</dl>"
    return f"<p>{_inline(block)}</p>"


def _table(table: Table) -> str:
    strong = {row % len(table.rows) for row in table.strong}
    head = "".join(f"<th>{escape(name).replace(chr(10), '<br>')}</th>" for name in table.header)
    body = "\n".join(
        f"<tr{' class=strong' if at in strong else ''}>{_cell(row[0], 'th')}{''.join(map(_cell, row[1:]))}</tr>"
        for at, row in enumerate(table.rows)
    )
    caption = f"<caption>{_inline(table.caption)}</caption>" if table.caption else ""
    kind = ' class="prose"' if table.prose else ""
    return (
        f'<div class="scroll"><table{kind}>{caption}<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
    )


def _cell(cell: str | Cell, tag: str = "td") -> str:
    if isinstance(cell, Cell):
        return f'<{tag} class="{cell.kind}">{escape(cell.text)}</{tag}>'
    return f"<{tag}>{escape(cell)}</{tag}>"


def _said(text: str | Sequence[tuple[str, str]]) -> str:
    if isinstance(text, str):
        return escape(text)
    return " ".join(
        escape(word) if kind == "equal" else f'<mark class="{escape(kind)}">{escape(word)}</mark>'
        for word, kind in text
    )


def _facts(facts: Mapping[str, Any]) -> list[str]:
    rows = [
        f"<tr><th>{escape(name)}</th><td>{escape('not installed' if value is None else str(value))}</td></tr>"
        for name, value in facts.items()
    ]
    if not rows:
        return []
    return [
        "\n<h2>What it ran on</h2>",
        '<div class="scroll"><table class="prose"><tbody>',
        *rows,
        "</tbody></table></div>",
    ]
