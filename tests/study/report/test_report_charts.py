"""What charts show of their numbers."""

from __future__ import annotations

import base64
import re
from html import unescape
from xml.etree import ElementTree

import matplotlib
import pytest
from matplotlib.text import Text

from affinity_pool.study.report.charts import NARROW, Bars, Point, Series, bars, frontier, heat, lines, pareto
from affinity_pool.study.report.drawing import limits
from affinity_pool.study.report.figures import Chart
from affinity_pool.study.report.palette import DARK, LIGHT


def drawings(chart: Chart) -> list[str]:
    """The SVG for dark and the one for light surroundings, of a page."""
    return [
        base64.b64decode(data).decode() for data in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", chart.html())
    ]


def texts(chart: Chart) -> list[str]:
    dark, light = (
        [unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)] for svg in drawings(chart)
    )
    assert dark == light
    return light


def test_every_curve_and_the_baseline_are_named() -> None:
    chart = lines(
        "n", [Series("up", [0, 1], [0.1, 0.2]), Series("down", [0, 1], [0.2, 0.1])], x="layer", y="WER",
        baseline=("unpooled", 0.05),
    )  # fmt: skip
    assert {"up", "down", "unpooled", "layer", "WER"} <= set(texts(chart))


def test_a_value_above_the_chart_is_written_and_the_caption_says_so() -> None:
    series = [Series("loops", [0, 4, 8], [0.1, 3.21, 0.1]), Series("fewer", [0, 4, 8], [0.1, 1.23, 0.1])]
    chart = lines("n", series, x="layer", y="WER", top=0.5)
    assert "321.0%" in texts(chart)
    assert "123.0%" not in texts(chart)  # one figure a layer: the largest
    assert "leaves the chart at 50.0%" in chart.caption
    assert "leaves" not in lines("n", series, x="layer", y="WER", top=4).caption


@pytest.mark.parametrize("text", [r"$\frac$", "$5 or $6", "a_b^c"])
def test_names_are_no_tex_even_where_the_readers_settings_say_so(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    chart = lines("n", [Series(text, [0, 1], [0.1, 0.2])], x=text, y=text, title=text, baseline=(text, 0.05))
    assert texts(chart).count(text) == 5
    found = chart.draw(LIGHT).findobj(Text)
    assert sum(of.get_text() == text for of in found) == 5
    assert not any(of.get_usetex() or of.get_parse_math() for of in found if of.get_text() == text)


def test_values_above_the_chart_do_not_run_into_each_other() -> None:
    many = [Series("loops", range(32), [2.0 + at / 100 for at in range(32)])]
    shown = [text for text in texts(lines("n", many, x="layer", y="WER", top=0.5, width=NARROW)) if text[0] == "2"]
    assert "231.0%" in shown  # the largest
    assert 4 <= len([text for text in shown if text.endswith(".0%")]) <= 8


def test_no_two_curves_or_kinds_of_points_look_the_same() -> None:
    curves = [Series(str(at), [0, 1], [at, at], dash=at % 3) for at in range(12)]
    points = [Point(0.1 * at, 0.1, series=str(at)) for at in range(12)]
    for chart in (lines("n", curves, x="layer", y="WER"), frontier("n", points, x="left", y="WER")):
        (legend,) = chart.draw(LIGHT).legends
        handles = [of for of in legend.get_lines() if of.get_marker()]
        assert len({(of.get_color(), of.get_marker()) for of in handles}) == len(handles) == 12


def test_a_name_covers_no_other_point() -> None:
    points = [Point(0.5, 0.1, "0:0.9:1,7:0.85:3", chosen=True), Point(0.52, 0.105), Point(0.99, 0.4)]
    figure = frontier("n", points, x="left", y="WER").draw(LIGHT)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    (name,) = (text for text in axes.texts if text.get_text().startswith("0:0.9"))
    box = name.get_window_extent()
    assert not any(box.contains(*axes.transData.transform((point.x, point.y))) for point in points)


@pytest.mark.parametrize("text", ["\x00\x1b", "\ud83d", "\ufffe\uffff"])
def test_a_drawing_is_xml_whatever_a_name_holds(text: str) -> None:
    for svg in drawings(lines("n", [Series(text, [0, 1], [1, 2])], x=text, y=text, title=text)):
        ElementTree.fromstring(svg)


def test_gaps_and_curves_without_any_value_can_be_drawn() -> None:
    assert lines(
        "n", [Series("gap", [0, 1, 2], [0.1, None, 0.2]), Series("none", [0, 1], [None, None])], x="", y=""
    ).html()


def test_the_frontier_leaves_out_what_another_point_beats() -> None:
    points = [Point(0.5, 0.1), Point(0.2, 0.3), Point(0.6, 0.1), Point(0.9, 0.05), Point(0.3, 0.4)]
    assert [point.x for point in pareto(points)] == [0.2, 0.5, 0.9]


def test_points_of_one_place_get_one_name_rather_than_two_on_top_of_each_other() -> None:
    crowd = [Point(0.5, 0.1, f"name {i}") for i in range(40)]
    shown = [text for text in texts(frontier("n", crowd, x="left", y="WER")) if text.startswith("name")]
    assert 1 <= len(shown) <= 8


def test_several_series_have_a_key_and_one_has_none() -> None:
    points = [Point(0.5, 0.1, series="pooling"), Point(0.4, 0.2, series="speed-up")]
    assert {"pooling", "speed-up"} <= set(texts(frontier("n", points, x="left", y="WER")))
    assert "pooling" not in texts(frontier("n", points[:1], x="left", y="WER"))


def test_bars_say_their_values_and_stacks_their_sums() -> None:
    parts = [Bars("a", [1.0, 2.0]), Bars("b", [0.5, None])]
    assert {"1.0", "2.0", "0.5", "–"} <= set(texts(bars("n", ["x", "y"], parts, x="ms", form=".1f")))
    stacked = texts(bars("n", ["x", "y"], parts, x="ms", form=".2f", stacked=True))
    assert "1.50" in stacked
    assert "2.00" in stacked


def test_a_grid_writes_every_value_and_a_dash_for_none() -> None:
    written = texts(heat("n", ["0.9", "0.8"], ["input", "4"], [[0.1, None], [0.25, float("nan")]], x="layer", y="τ"))
    assert written.count("–") == 2
    assert {"10.0%", "25.0%", "input", "4", "0.9", "0.8"} <= set(written)


def test_a_narrow_chart_fits_a_phone_with_text_of_ten_pixels() -> None:
    assert NARROW * 0.8 <= 390 - 2 * 20
    assert (
        f"min-width:{NARROW * 0.8:.0f}px" in lines("n", [Series("a", [0, 1], [1, 2])], x="", y="", width=NARROW).html()
    )


def test_light_and_dark_are_drawn_in_their_own_colours() -> None:
    dark, light = drawings(lines("n", [Series("a", [0, 1], [1, 2])], x="layer", y="WER", title="t"))
    for svg, own, other in ((dark, DARK, LIGHT), (light, LIGHT, DARK)):
        ElementTree.fromstring(svg)
        for colour in (own.groups[0], own.ink, own.faint, own.line, own.paper):
            assert colour in svg
        assert other.groups[0] not in svg
        assert other.ink not in svg


def test_axes_start_at_zero_unless_all_values_are_far_from_it() -> None:
    assert limits([0.02, 0.3])[0] == 0
    assert limits([0.9, 0.95])[0] > 0.8
    assert limits([0.02, 2.0], top=0.5) == (0, 0.5)
    assert limits([None, float("nan")]) == limits([])
