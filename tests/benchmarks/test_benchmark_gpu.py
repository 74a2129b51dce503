"""The GPU suites, as far as a CPU can tell: forms, failures, files, tables. Capture and events need the device."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from affinity_pool import pool
from affinity_pool.benchmarks import gpu, run, suites
from affinity_pool.benchmarks.cases import Case, WrongOutputError, make_data
from affinity_pool.benchmarks.contenders import CONTENDERS, Pool, Rule
from affinity_pool.benchmarks.measure import Options
from affinity_pool.benchmarks.tables import render
from affinity_pool.benchmarks.timing import Call, interleave

CASE = Case(40, dim=64, batch=2)
BRIEF = Options(rounds=5, seconds=0.02, echo=lambda _: None)


def broken(rule: Rule) -> Pool:
    def fail(x: Tensor) -> Tensor:
        raise RuntimeError("no kernel image\nand more")

    return fail


def wrong(rule: Rule) -> Pool:
    return lambda x: pool(x, rule.cu_seqlens).values + 1


def test_what_waits_has_one_form_and_what_does_not_has_two() -> None:
    record = gpu.measure(CASE, ("clone", "ours", "vectorised"), BRIEF)
    assert {name: set(entry) for name, entry in record["contenders"].items()} == {
        "clone": {"eager", "whole"},
        "ours": {"eager", "whole"},
        "vectorised": {"whole"},
    }
    assert "failed" not in record


def test_a_padded_result_writes_as_much_as_it_reads() -> None:
    entry = gpu.measure(CASE, ("clone", "ours"), BRIEF)["contenders"]["ours"]
    read, kept = 80 * 64 * 4, round(0.4 * 80) * 64 * 4
    assert entry["eager"]["bytes_moved"] == 2 * read
    assert entry["whole"]["bytes_moved"] == read + kept


def test_a_baseline_that_cannot_run_is_reported_and_the_others_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONTENDERS, "torch.compile", broken)
    record = gpu.measure(CASE, ("clone", "ours", "torch.compile"), BRIEF)
    assert record["failed"] == {"torch.compile": "RuntimeError: no kernel image"}
    assert set(record["contenders"]) == {"clone", "ours"}


def test_ours_failing_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONTENDERS, "ours", broken)
    with pytest.raises(RuntimeError, match="no kernel image"):
        gpu.measure(CASE, ("clone", "ours"), BRIEF)


@pytest.mark.parametrize("name", ["ours", "vectorised"])
def test_a_wrong_output_ends_the_suite(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(CONTENDERS, name, wrong)
    with pytest.raises(WrongOutputError):
        gpu.measure(CASE, ("clone", "ours", "vectorised"), BRIEF)


SUITES = ["gpu-headline", "gpu", "gpu-sweep"]


@pytest.mark.parametrize("suite", SUITES)
def test_the_suites_refuse_a_cpu(suite: str) -> None:
    with pytest.raises(ValueError, match="this suite times a GPU: device must be cuda, got 'cpu'"):
        run(suite)


def test_large_cases_stay_on_the_device() -> None:
    """Their judge is not the reference: half a minute a case."""
    assert max(case.tokens * case.batch for case in (*gpu.CORNERS, Case(65536))) > 4096
    data = make_data(Case(5000, dim=32))
    assert data.expected.shape[0] == 2000


def test_a_call_of_many_counts_as_many() -> None:
    calls = {"one": Call(torch.clone), "ten": Call(lambda x: [x.clone() for _ in range(10)], calls=10)}
    samples = interleave(calls, [torch.ones(1 << 16)], rounds=5, seconds=0.1)
    assert samples["ten"].calls_per_sample % 10 == 0
    assert samples["ten"].against(samples["one"])["p50"] < 5


def cuda_form(us: float, clone: float) -> dict[str, Any]:
    ratio = {"p20": us / clone, "p50": us / clone, "p80": us / clone, "ci95": [us / clone] * 2}
    return {"us": {"p50": us}, "against_clone": ratio, "percent_of_copy": 100 * clone / us}


def cuda_record(case: Case, **us: float) -> dict[str, Any]:
    contenders = {
        name: {form: cuda_form(t, us["clone"]) for form in ("graph", "eager", "whole")} for name, t in us.items()
    }
    return {"case": asdict(case), "contenders": contenders}


@pytest.mark.parametrize("suite", SUITES)
def test_results_have_a_table(suite: str) -> None:
    records = [
        cuda_record(Case(1500, dtype="bfloat16"), clone=6.0, ours=9.0),
        {
            **cuda_record(gpu.BASE, clone=8.0, ours=10.0, vectorised=500.0),
            "failed": {"torch.compile": "Error", "triton": "Error"},
        },
        cuda_record(gpu.CORNERS[2], clone=500.0, ours=550.0, triton=1100.0),
    ]
    origin = {
        "device": "A GPU",
        "cores": 1,
        "backends": {"cpu": "C++"},
        "versions": {"torch": "2.11"},
        "commit": None,
        "uncommitted": None,
        "sources": "0123456789abcdef",
        "date": "2026-01-01T00:00",
    }
    results = {"suite": suite, "provenance": origin, "method": {"rounds": 5}, "results": records}
    table = render(results)
    assert "\n\nA GPU, 1 cores, torch 2.11, sources 0123456789abcdef, 2026-01-01" in table
    assert "\n\n**partial, 3 cases**, A GPU, 1 cores" in render({**results, "partial": True})
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1, "every line has every column"
    if suite != "gpu-sweep":
        assert "| 1500 | bfloat16 | 8 us | 10 us | **1.25** | 80 % | 9 us | **1.50** |" in table
        assert "failed | failed | 50x" in table
    else:
        assert "| tokens | 1500 | 10 us | **1.25** | 80 % | failed |" in table
        assert "| corner | [65536, 8192] bfloat16 | 0.55 ms | **1.10** | 91 % | 2.0 |" in table


def suite_of(*outcomes: Any) -> Any:
    def suite(options: Options) -> Any:
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
            yield outcome

    return suite


@pytest.mark.parametrize(
    ("outcomes", "error", "left"),
    [
        (({"a": 1}, {"a": 2}), None, {"r.json": 2}),
        (({"a": 1}, RuntimeError("killed")), RuntimeError, {"r.partial.json": 1}),
        (({"a": 1}, WrongOutputError("wrong")), WrongOutputError, {}),
    ],
    ids=["whole", "cut off", "wrong"],
)
def test_a_file_has_its_name_when_it_is_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, outcomes: Any, error: Any, left: dict[str, int]
) -> None:
    monkeypatch.setitem(suites.SUITES, "gpu", suite_of(*outcomes))
    if error:
        with pytest.raises(error):
            run("gpu", out=tmp_path / "r.json")
    else:
        run("gpu", out=tmp_path / "r.json")
    assert {p.name: len(json.loads(p.read_text())["results"]) for p in tmp_path.iterdir()} == left


def test_each_case_is_in_the_file_before_the_next_begins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever ends the process then."""
    seen = []

    def suite(options: Options) -> Any:
        for case in range(3):
            seen.append({p.name: json.loads(p.read_text()) for p in tmp_path.iterdir()})
            yield {"case": case}

    monkeypatch.setitem(suites.SUITES, "gpu", suite)
    run("gpu", out=tmp_path / "r.json")
    assert seen[0] == {}
    for done, files in enumerate(seen[1:], start=1):
        assert list(files) == ["r.partial.json"]
        assert files["r.partial.json"]["partial"] is True
        assert len(files["r.partial.json"]["results"]) == done
    assert "partial" not in json.loads((tmp_path / "r.json").read_text())


def test_the_headline_is_30_s_of_audio_and_half_a_gigabyte(monkeypatch: pytest.MonkeyPatch) -> None:
    plan: list[Any] = []
    monkeypatch.setattr(gpu, "measure_all", lambda cases, options: plan.extend(cases))
    gpu.headline(BRIEF)
    assert {(case.tokens, case.dim, case.dtype) for case, _ in plan} == {
        (750, 4096, "bfloat16"),
        (65536, 4096, "bfloat16"),
    }
    assert {names for _, names in plan} == {("clone", "ours", "ours to a count", "triton")}
