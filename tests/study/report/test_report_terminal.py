"""What a demo prints: text is text, not markup."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from affinity_pool.models import Site
from affinity_pool.models.settings import Pooling
from affinity_pool.study.efficiency.flops import Flops
from affinity_pool.study.efficiency.ttft import Ttft
from affinity_pool.study.experiments.demo.page import write
from affinity_pool.study.experiments.demo.run import Clip, Cost, Demo
from affinity_pool.study.experiments.demo.terminal import compared, show
from affinity_pool.study.groups import Picture, Row, Span

FLOPS = Flops(1.0, 1.0, 1.0, 1.0, 0.0)
COST = Cost(3, (10, 5), (FLOPS, FLOPS), (20, 10), Ttft((1.0,) * 6, (0.9,) * 6))


def demo_of(text: str) -> Demo:
    clips = tuple(Clip(text, 1.0, text, text, text, text, COST) for _ in range(2))
    picture = Picture(text, np.zeros((8, 10)), 1.0, 0.1, [], [Row("tokens", "", [Span(0, 10)])])
    pooling = Pooling((Site(0, 0.5, 1),), "keep", "plain")
    return Demo(text, "cpu", "float32", pooling, 6, clips, picture, (f"{text} was cut",))


def test_words_are_compared_by_the_normaliser_of_the_demo() -> None:
    clips = (Clip("clip", 1.0, "transcribe", "two colours", "2 colors", "2 collars", COST),)
    plain = replace(demo_of("clip"), clips=clips)
    whisper = replace(plain, normaliser="whisper")
    assert [errors.count for errors in plain.errors or ()] == [2, 2]
    assert [errors.count for errors in whisper.errors or ()] == [0, 1]
    assert compared(plain, clips[0], "2 colors") == [("2", "substitute"), ("colors", "substitute")]
    assert compared(whisper, clips[0], "2 colors") == [("2", "equal"), ("colors", "equal")]


def printed(text: str) -> str:
    console = Console(file=io.StringIO(), width=200)
    show(demo_of(text), console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "text", ["Interview [dQw4w9WgXcQ]", "a[/b]", "[red]one[/red]", "x [/]", r"\[x]", ":smile:", "[[1]]"]
)
def test_names_references_and_notes_are_printed_as_they_are_written(text: str) -> None:
    lines = printed(text).splitlines()
    assert sum(line.startswith(text) for line in lines) == 4  # of each clip: above its answers, and its costs
    assert sum(line.split(maxsplit=1) == ["reference", text] for line in map(str.strip, lines)) == 2
    assert any(line == f"Note: {text} was cut" for line in lines)


@pytest.mark.parametrize("text", ["\udce9t\udce9", "one\x1b[31m\x07 two\x00"])
def test_names_of_files_that_are_no_text_end_no_demo(text: str, tmp_path: Path) -> None:
    assert not set("\x1b\x07\0") & set(printed(text))
    assert printed(text).encode()
    page, *_, summary = write(demo_of(text), tmp_path)
    assert "\ufffd" in page.read_text("utf-8")
    assert json.loads(summary.read_text("utf-8"))["clips"][0]["name"] == text
