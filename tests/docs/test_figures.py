"""Figures in README and tables in documents are what the results, and the cost model, say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import affinity_pool
from affinity_pool.benchmarks.render import refresh

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def results(path: str) -> Any:
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def row(path: str) -> str:
    """Of README's table the line that ends with a link to this file, without the link."""
    (line,) = [line for line in README.splitlines() if line.endswith(f"({path}) |")]
    return line[: line.rindex("[")]


def times(ratio: float, interval: list[float]) -> str:
    low, high = interval
    return f"{ratio:.2f} [{low:.2f}, {high:.2f}] times faster"


def test_readme_is_short_and_says_what_has_not_run() -> None:
    assert len(README.splitlines()) <= 150
    assert "have not run on a GPU" in README


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md", "docs/serving.md"])
def test_the_wheel_has_the_name_that_pages_give_it(page: str) -> None:
    named = set(re.findall(r"affinity_pool-\S+?\.whl", (ROOT / page).read_text(encoding="utf-8")))
    assert named == {f"affinity_pool-{affinity_pool.__version__}-cp310-abi3-manylinux_2_28_x86_64.whl"}


def test_the_demo_s_tokens_words_and_times() -> None:
    path = "benchmarks/results/tiny-lslm-demo.json"
    found = results(path)
    lines = [line for line in README.splitlines() if f"({path}) |" in line]
    tokens, first = lines
    before, inside, after = found["total"]["audio_tokens"]
    assert f"| {before} | {after}, {inside} of them before layer 7 |" in tokens
    errors = found["word_errors"]
    wrong = {way: sum(errors[way][kind] for kind in ("substitutions", "deletions", "insertions")) for way in errors}
    assert set(wrong.values()) == {1}
    assert {errors[way]["words"] for way in errors} == {28}
    assert "[one of 28 words wrong with both]" in tokens
    ttft = found["total"]["ttft_seconds"]
    faster = times(ttft["ratio"], ttft["interval_95"])
    assert f"| {ttft['unpooled'] * 1e3:.0f} ms | {ttft['pooled'] * 1e3:.0f} ms, {faster} |" in first


def errors_of(path: str, sites: str) -> tuple[float, str, float]:
    """WER without pooling; with it, in README's words; and the audio tokens that are left."""
    unpooled, pooled = (
        next(one for one in results(path)["conditions"] if one["name"] == name) for name in ("unpooled", sites)
    )
    before, after = (one["scores"]["transcribe"]["wer"] for one in (unpooled, pooled))
    change = after["difference"]
    low, high = (100 * end for end in change["interval_95"])
    digits = 2 if after["value"] < 0.01 else 1
    said = f"{100 * after['value']:.{digits}f} %, by {100 * change['value']:.1f} [{low:+.1f}, {high:+.1f}] points"
    return round(100 * before["value"], digits), said, pooled["retention"][-1]


def test_word_errors_of_the_bundled_model() -> None:
    path = "docs/study/eval-allison/summary.json"
    before, after, left = errors_of(path, "affinity at 0:0.98:1,7:0.85:3")
    assert f"512 recordings, {left:.0%}".replace("%", " %") in row(path)
    assert f"| {before} % | {after} |" in row(path)


def test_word_errors_of_whisper() -> None:
    path = "docs/study/whisper-tiny/summary.json"
    before, after, left = errors_of(path, "affinity at memory:0.96:1, proportional")
    assert f"over 244, {left:.0%} left".replace("%", " %") in row(path)
    assert f"| {before} % | {after} |" in row(path)


def test_the_time_to_the_first_token() -> None:
    path = "benchmarks/results/cpu-xeon/cost-mid.json"
    found = next(one for one in results(path)["results"] if one["seconds"] == 30)
    without, pooled = (f"{found[f'{way}_seconds']['p50'] * 1e3:.0f} ms" for way in ("unpooled", "pooled"))
    assert f"| {without} | {pooled}, {times(found['ratio'], found['ratio_ci95'])} |" in row(path)


def test_requests_a_second() -> None:
    path = "docs/study/serving-mid/summary.json"
    found = results(path)
    assert found["config"]["keep"] == 0.5
    one, four, sixteen = (f"{result['requests_per_second']['ratio']:.2f}" for result in found["results"])
    assert [result["concurrency"] for result in found["results"]] == [1, 4, 16]
    assert f"| 1 | {one}, {four} and {sixteen} at 1, 4 and 16 at once |" in row(path)


def test_the_op_against_the_paper_s_loop_and_a_copy() -> None:
    path = "benchmarks/results/cpu-zen4/headline.json"
    case = {"tokens": 750, "dtype": "bfloat16", "threads": 1}
    found = [one for one in results(path)["results"] if case.items() <= one["case"].items()]
    (crowd,) = [one["contenders"] for one in found if "paper's loop" in one["contenders"]]
    (cold,) = [one["contenders"] for one in found if one["case"]["cache"] == "cold" and len(one["contenders"]) == 2]
    loop, ours = (crowd[name]["us"]["p50"] / 1e3 for name in ("paper's loop", "ours"))
    copies = cold["ours"]["against_clone"]["p50"]
    assert f"| {loop:.1f} ms, the paper's loop | {ours:.2f} ms, {copies:.2f} of a copy from memory |" in row(path)


TABLES = {
    "costs": [
        "cpu-zen4/headline",
        "cpu-zen4/overhead",
        "cpu-zen5/counts",
        "cpu-xeon/cost-mid",
        "cpu-xeon/cost-bundled",
    ],
    "releasing": ["wheel/check"],
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_what_the_results_say(name: str) -> None:
    page = ROOT / "docs" / f"{name}.md"
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"<!-- bench:(\S+) -->", text) == TABLES[name]
    assert refresh(page) == text


def test_the_page_on_predicted_costs_holds_the_model_s_tables() -> None:
    model = [sys.executable, "-m", "affinity_pool.benchmarks.without_gpu.cost_model"]
    tables = subprocess.run(model, capture_output=True, text=True, check=True).stdout.strip().split("\n\n")
    assert len(tables) == 2
    page = (ROOT / "docs" / "cost-model.md").read_text(encoding="utf-8")
    assert all(table in page for table in tables)
