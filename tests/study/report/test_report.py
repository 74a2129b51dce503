"""Pages hold everything, escape everything, and come out the same each time."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from affinity_pool.study.report.charts import Bars, Point, Series, bars, frontier, heat, lines
from affinity_pool.study.report.page import Answers, Card, Cell, Page, Section, Table, html, write
from affinity_pool.study.report.palette import DARK, LIGHT, Palette

HOSTILE = "<script>alert('x')</script> & \"$\\alpha$\" **b**"
VOID = {"meta", "img", "source", "br"}


class Tags(HTMLParser):
    """Collects the tags and what they refer to, and checks that they are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.ids: list[str] = []
        self.references: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("href", "xlink:href", "src", "srcset"):
                self.references.add(str(value))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.remove(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def sample(text: str = "a name") -> Page:
    layers = [0, 8, 16, 31]
    curves = [
        Series(text, layers, [0.3, 0.1, 2.5, 0.03], [0.2, 0.1, 1.5, 0.02], [0.4, 0.1, 3.5, 0.04]),
        Series("other", layers, [0.2, None, 0.1, 0.03], dash=1),
    ]
    points = [Point(0.9, 0.03, text, text), Point(0.5, 0.2, "above", "s"), Point(0.2, 0.05, "c", "s", chosen=True)]
    parts = [Bars(text, [0.1, None], [(0.05, 0.15), None]), Bars("other", [0.2, 0.3])]
    charts = [
        lines("wer", curves, x=text, y=text, title=text, baseline=(text, 0.03), top=0.5, alt=text, caption=text),
        lines("cwer", curves, x="layer", y="cWER", title=text),
        frontier("frontier", points, x=text, y=text, title=text, baseline=(text, 0.03), top=0.1),
        bars("bars", [text, "b"], parts, x=text, title=text, baseline=(text, 0.1)),
        bars("time", [text, "b"], parts, x=text, stacked=True),
        heat("grid", [text, "b"], [text, "c"], [[0.1, None], [0.2, 0.3]], x=text, y=text, title=text, chosen=(1, 0)),
    ]
    table = Table([text, text], [[text, text], [text, Cell(text, "bad")]], text, strong=[-1])
    answers = Answers(text, text, [(text, text), (text, [(text, "substitute"), (text, "equal")])])
    return Page(
        text, text, [Card(text, text, text)], [text], [Section(text, [text, *charts, table, answers])], {text: text}
    )


def test_a_page_needs_nothing_else(tmp_path: Path) -> None:
    index, *files = write(sample(), tmp_path)
    tags = Tags(index.read_text())
    assert not tags.open
    assert not tags.seen & {"script", "link", "iframe", "object"}
    assert all(reference.startswith(("#", "data:")) for reference in tags.references)
    assert "url(http" not in index.read_text()
    assert {path.name for path in files} == {
        f"{name}{kind}"
        for name in ("wer", "cwer", "frontier", "bars", "time", "grid")
        for kind in (".png", "-dark.png", ".svg")
    }


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = ({path.name: path.read_bytes() for path in write(sample(), tmp_path / name)} for name in ("a", "b"))
    assert first == second


def test_whatever_is_shown_is_escaped() -> None:
    page = html(sample(HOSTILE))
    assert Tags(page).seen == Tags(html(sample())).seen | {"b"}
    assert "script>" not in page.replace("script&gt;", "")
    assert "$\\alpha$" in page  # in a chart too: text is no formula
    assert page.count("alert(") > 30


def test_charts_of_a_page_are_pictures_for_light_and_dark_with_their_words_and_no_ids() -> None:
    page = html(sample())
    tags = Tags(page)
    assert not tags.ids
    assert len(re.findall(r'<source media="screen and \(prefers-color-scheme: dark\)" srcset="data:', page)) == 6
    assert page.count('alt="a name') == 5  # its own words, or its title and axes
    for data in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page):
        ElementTree.fromstring(base64.b64decode(data))


def test_a_drawing_is_saved_as_it_is_on_the_page(tmp_path: Path) -> None:
    page = html(sample())
    write(sample(), tmp_path)
    drawing = (tmp_path / "wer.svg").read_bytes()
    assert base64.b64encode(drawing).decode() in page
    assert LIGHT.groups[0] in drawing.decode()


def test_every_colour_of_the_stylesheet_is_set() -> None:
    page = html(sample())
    assert set(re.findall(r"var\((--[\w-]+)\)", page)) <= set(re.findall(r"(--[\w-]+):", page))


@pytest.mark.parametrize("palette", [LIGHT, DARK])
def test_text_can_be_read_on_the_page(palette: Palette) -> None:
    """Contrast of 4.5 as WCAG asks, on the paper and on a card."""

    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for below in (palette.paper, palette.card):
        for text in (palette.ink, palette.faint, palette.bad):
            low, high = sorted((light(below), light(text)))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, below)


def test_small_markup_and_tables() -> None:
    table = Table(["name", "left\nof all"], [["a", "1"], ["total", Cell("2", "strong")]], strong=[-1])
    page = html(Page("t", "a **bold** `c**o**de`", sections=[Section("s", [table])], facts={"triton": None}))
    assert "a <b>bold</b>" in page
    assert "<th>left<br>of all</th>" in page
    assert '<tr class=strong><th>total</th><td class="strong">2</td></tr>' in page
    assert "<th>triton</th><td>not installed</td>" in page
