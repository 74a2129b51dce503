"""The picture of the groups: its colours, and its height with a few rows and with one a layer."""

from __future__ import annotations

import io
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text

from affinity_pool.study.data.manifest import Word
from affinity_pool.study.groups import Picture, Row, Span
from affinity_pool.study.report.groups_picture import chart, draw
from affinity_pool.study.report.page import Page, Section, html, write
from affinity_pool.study.report.palette import DARK, LIGHT

TOKENS = [Span(i, i + 1) for i in range(6)]
FIRST = [Span(0, 2), Span(2, 3), Span(3, 5), Span(5, 6)]
LAST = [Span(0, 3), Span(3, 5), Span(5, 6)]


def picture(rows: list[list[Span]], independent: bool, detail: str = "") -> Picture:
    named = [Row(f"row {i}", detail, spans) for i, spans in enumerate(rows)]
    return Picture("$a$ <b>", np.eye(8), 0.24, 0.04, [Word("$w$", 0.05, 0.1)], named, independent)


def colours(figure_of: Picture) -> list[list[str]]:
    """Of each row's bars."""
    bars = draw(figure_of).axes[1].collections[0]
    faces = [to_hex(face) for face in bars.get_facecolors()]
    sizes = [len(row.spans) for row in figure_of.rows]
    return [faces[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes))]


def test_a_token_has_the_colour_of_the_group_it_ends_up_in() -> None:
    a, b, grey = LIGHT.groups[0], LIGHT.groups[1], LIGHT.alone
    assert colours(picture([TOKENS, FIRST, LAST], independent=False)) == [
        [a, a, a, b, b, grey],
        [a, a, b, grey],
        [a, b, grey],
    ]


def test_groups_of_independent_rows_alternate_in_each_row() -> None:
    a, b, grey = LIGHT.groups[0], LIGHT.groups[1], LIGHT.alone
    assert colours(picture([TOKENS, FIRST, LAST], independent=True)) == [
        [grey] * 6,
        [a, grey, b, grey],
        [a, b, grey],
    ]


def test_many_rows_are_lower_and_text_below_names_keeps_its_room() -> None:
    def row(rows: int, detail: str = "") -> float:
        figure = draw(picture([TOKENS] * rows, independent=True, detail=detail))
        return figure.axes[1].get_position().height * figure.get_figheight() / rows

    assert row(3) > row(9) > row(33)
    assert row(33, "cosine ≥ 0.8") > 0.4


@pytest.mark.parametrize(
    "words",
    [
        [Word("uh", 0.05, 0.1), Word("yes", 0.05, 0.1)],
        [Word("longer", 0.0, 0.2), Word("in", 0.05, 0.15)],
        [Word("a", 0.0, 0.24), Word("b", 0.01, 0.02)],
        [Word("x", 0.1, 0.1), Word("y", 0.1, 0.1)],
        [Word("late", 5.0, 6.0), Word("later", 6.0, 7.0)],
        [Word("one", 0.0, 0.1)],
        [],
    ],
)
def test_words_may_overlap_have_one_middle_or_lie_outside(words: list[Word]) -> None:
    figure = draw(replace(picture([TOKENS], independent=False), words=words))
    figure.savefig(io.BytesIO())
    inside = [word.text for word in words if word.start < 0.24]
    assert [text.get_text() for text in figure.axes[0].texts if text.get_text() != "log-mel"] == inside


@pytest.mark.parametrize("text", [r"cost $\frac$", "$5 or $6", "a_b^c\\d %", "[/b] <b>", "שלום", "二"])
def test_text_is_drawn_as_it_is_written(text: str) -> None:
    figure = draw(replace(picture([TOKENS], False), title=text, words=[Word(text, 0.05, 0.1)]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # glyphs that are not installed
        figure.savefig(io.BytesIO())
    shown = figure.findobj(Text)
    assert sum(of.get_text() == text for of in shown) == 2
    assert not any(of.get_parse_math() for of in shown if of.get_text() == text)


@pytest.mark.parametrize("text", ["\x00\x1b[31m", "\ud83d", "tab\tnew\nline", "x" * 10_000])
def test_what_no_font_has_does_not_end_a_run(text: str) -> None:
    of = chart(replace(picture([TOKENS], False), title=text, words=[Word(text[:100], 0.05, 0.1)]))
    page = html(Page(text, text, sections=[Section(text, [of])]))
    assert "\0" not in page
    assert page.encode()


def test_the_page_holds_a_picture_for_each_scheme_and_so_does_the_folder(tmp_path: Path) -> None:
    of = picture([TOKENS, FIRST], independent=False)
    written = write(Page("t", "l", sections=[Section("s", [chart(of, "layers")])]), tmp_path)
    assert [path.name for path in written] == ["index.html", "layers.png", "layers-dark.png"]
    page = written[0].read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "row 1 4" in page  # for readers who do not see it
    assert written[1].read_bytes() != written[2].read_bytes()
    assert DARK.paper in page
