"""The entry point of the benchmarks under both its names: what it takes, what it refuses, what it prints and keeps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from affinity_pool.benchmarks import __main__ as program
from affinity_pool.benchmarks.render import render
from affinity_pool.benchmarks.suites import SUITES

BRIEF = ["--rounds", "5", "--seconds", "0.02"]
Main = Callable[[list[str]], None]


@pytest.fixture(params=["python -m affinity_pool.benchmarks", "affinity-pool bench"])
def main(request: pytest.FixtureRequest) -> Main:
    """Both names."""
    if request.param != "affinity-pool bench":
        return program.main
    commands = pytest.importorskip("affinity_pool.cli.commands", reason="needs typer")
    return lambda arguments: commands.app(["bench", *arguments], prog_name="affinity-pool", standalone_mode=False)


def test_a_suite_is_measured_kept_and_printed_as_a_table(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "quick.json"
    main(["quick", *BRIEF, "--contenders", "clone", "ours", "--threads", "1", "--out", str(out)])
    said = capsys.readouterr()
    results = json.loads(out.read_text())
    assert said.out == render(results) + "\n"
    assert len(said.err.splitlines()) == len(results["results"]) == 9
    assert {record["case"]["window"] for record in results["results"]} == {1, 3, 8, 32}
    assert all(set(record["contenders"]) == {"clone", "ours"} for record in results["results"])
    rows = [line for line in said.out.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 9
    assert len({row.count("|") for row in rows}) == 1


def test_help_names_every_suite_and_option(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(("usage: python -m affinity_pool.benchmarks [-h]", "usage: affinity-pool bench [-h]"))
    for word in [*SUITES, "--threads", "--out", "--rounds", "--seconds", "--contenders", "--device"]:
        assert word in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["headlines"], "argument suite: invalid choice: 'headlines'"),
        (["--threads", "0"], "argument --threads: must be 1 or more, got '0'"),
        (["--threads", "two"], "argument --threads: invalid count value: 'two'"),
        (["--rounds", "0"], "argument --rounds: must be 1 or more, got '0'"),
        (["--seconds", "0"], "argument --seconds: must be a number of seconds, got '0'"),
        (["--seconds", "nan"], "argument --seconds: must be a number of seconds, got 'nan'"),
        (["--contenders", "numpy"], "argument --contenders: invalid choice: 'numpy'"),
        (["--device", "gpu"], "device 'gpu' cannot be used here: "),
        (["target", "--device", "meta"], "device 'meta' cannot be used here: "),
        (["gpu", "--device", "cpu"], "this suite times a GPU: device must be cuda, got 'cpu'"),
        (["--turns=3"], "unrecognized arguments: --turns=3"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_arguments_that_cannot_be_used_are_told_and_nothing_is_measured(
    main: Main, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "run", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert f"error: {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("suite", "device", "gpu_is_here", "chosen"),
    [
        (None, None, False, ("headline", "cpu")),
        (None, None, True, ("gpu", "cuda")),
        (None, "cpu", True, ("headline", "cpu")),
        (None, "cuda:1", True, ("gpu", "cuda:1")),
        ("target", None, True, ("target", "cpu")),
        ("target", "cuda", True, ("target", "cuda")),
        ("gpu-sweep", None, True, ("gpu-sweep", "cuda")),
    ],
)
def test_a_suite_goes_with_its_device_and_a_device_with_its_suite(
    suite: str | None, device: str | None, gpu_is_here: bool, chosen: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu_is_here)
    monkeypatch.setattr(program, "check_device", lambda name: None)
    assert program.choose(suite, device) == chosen


def test_a_gpu_suite_without_a_gpu_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("it runs here")
    with pytest.raises(ValueError, match="device 'cuda' cannot be used here"):
        program.choose("gpu", None)
