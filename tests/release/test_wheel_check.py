"""make wheel-check: what a cell's outcome is, that the others stay, and what a wheel is said to be made of."""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path
from typing import Any

import contents
import pytest
import smoke
import wheel_check

import affinity_pool

WHEEL = {"file": "affinity_pool-0.1.0-cp310-abi3-manylinux_2_28_x86_64.whl", "sha256": "ab" * 32}


def cell(python: str, torch: str, outcome: str = "passes") -> dict[str, Any]:
    return {"python": python, "torch": torch, "outcome": outcome}


def test_a_cell_replaces_itself_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "wheel" / "check.json"
    for asked in (("3.13", "2.14.1"), ("trixie", "2.14.1"), ("3.9", "2.10.0"), ("3.13", "2.9.0")):
        wheel_check.keep(file, WHEEL, cell(*asked))
    wheel_check.keep(file, {**WHEEL, "sha256": "cd" * 32}, cell("3.13", "2.14.1", "fails"))
    found = json.loads(file.read_text())
    assert [(r["python"], r["torch"], r["outcome"], r["wheel"][:2]) for r in found["results"]] == [
        ("3.9", "2.10.0", "passes", "ab"),
        ("3.13", "2.9.0", "passes", "ab"),
        ("3.13", "2.14.1", "fails", "cd"),
        ("trixie", "2.14.1", "passes", "ab"),
    ]
    assert set(found["wheels"]) == {"ab" * 8, "cd" * 8}


def answers(**by_command: tuple[int, str, str]) -> Any:
    """A Python that answers pip, and the smoke test, with a status, output and errors."""

    def run(command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, *by_command["pip" if "pip" in command else "smoke"])

    return run


INSTALLED = (0, "", "")


@pytest.mark.parametrize(
    ("smoked", "expected"),
    [
        ((0, '{"torch": "2.10.0"}\n', ""), {"outcome": "passes", "found": {"torch": "2.10.0"}}),
        ((1, "", "a\nthe means differ\n"), {"outcome": "fails", "why": "the means differ"}),
        ((-11, "", ""), {"outcome": "fails", "why": "ended with -11"}),
    ],
    ids=["passes", "fails", "crashes"],
)
def test_what_the_smoke_test_says_is_the_outcome(smoked: tuple[int, str, str], expected: dict[str, Any]) -> None:
    found = wheel_check.smoke(answers(pip=INSTALLED, smoke=smoked), "2.10.0", Path("some.whl"))
    assert {key: value for key, value in found.items() if key != "log"} == expected


def test_a_torch_that_cannot_be_had_is_no_fault_of_the_wheel_s() -> None:
    none = "ERROR: No matching distribution found for torch===9.9.9"
    with pytest.raises(wheel_check.NotHad, match=r"^No matching distribution found for torch===9\.9\.9$"):
        wheel_check.smoke(answers(pip=(1, "", f"WARNING: x\n{none}\n")), "9.9.9", Path("some.whl"))
    ours = "ERROR: affinity_pool-0.1.0-cp310-abi3-win32.whl is not a supported wheel on this platform."
    found = wheel_check.smoke(answers(pip=(1, "", ours)), "2.10.0", Path("some.whl"))
    assert (found["outcome"], found["why"]) == ("fails", ours)


def test_a_build_of_torch_is_asked_for_by_name_and_no_other_is_taken_for_it() -> None:
    asked: list[str] = []

    def run(command: list[str]) -> subprocess.CompletedProcess[str]:
        asked.extend(command)
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no")

    for version in ("2.13.0", "2.13.0+cpu"):
        with pytest.raises(wheel_check.NotHad):
            wheel_check.smoke(run, version, Path("some.whl"))
    assert [word for word in asked if word.startswith("torch")] == ["torch===2.13.0", "torch==2.13.0+cpu"]


def test_a_python_that_is_not_here_is_a_cell_that_was_not_had(tmp_path: Path) -> None:
    record = wheel_check.check("3.99", "2.13.0", tmp_path / "some.whl")
    assert (record["outcome"], record["why"]) == ("not had", "there is no Python 3.99 here")


def test_what_is_no_cell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("3.12", "3.12/", "/2.10.0", "3.12/2.10.0/cpu"):
        with pytest.raises(SystemExit):
            wheel_check.main([wrong])
        assert (
            f"a cell is PYTHON/TORCH, such as 3.12/2.13.0 or bookworm/2.13.0, got {wrong!r}" in capsys.readouterr().err
        )


def test_the_smoke_test_passes_here() -> None:
    smoke.values("cpu")
    smoke.derivatives("cpu")
    smoke.refusals()


@pytest.mark.parametrize("wrong", [{"window": 1}, {"threshold": 0.79}, {"mergeable": None}], ids=str)
def test_the_smoke_test_fails_where_the_op_is_wrong(monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any]) -> None:
    pool = affinity_pool.pool
    monkeypatch.setattr(affinity_pool, "pool", lambda *given, **options: pool(*given, **(options | wrong)))
    with pytest.raises(SystemExit, match="groups of"):
        smoke.values("cpu")


def test_the_smoke_test_refuses_to_run_beside_a_compiler_or_on_a_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"__init__\.py is not of the wheel$"):
        smoke.main()
    (tmp_path / "g++").write_text("#!/bin/sh\n")
    (tmp_path / "g++").chmod(0o755)
    with pytest.raises(SystemExit, match=r"there is .* and this is to show that none is needed"):
        smoke.main()


def test_device_code_is_counted_by_gpu() -> None:
    def entry(kind: int, architecture: int, payload: int) -> bytes:
        return struct.pack("<HHIQQII", kind, 1, 64, payload, 0, 0, architecture).ljust(64 + payload, b"\1")

    def container(*entries: bytes) -> bytes:
        return struct.pack("<IHHQ", contents.CONTAINER, 1, 16, sum(map(len, entries))) + b"".join(entries)

    section = container(entry(2, 80, 100), entry(2, 90, 40)) + bytes(8) + container(entry(1, 90, 24), entry(2, 80, 1))
    assert contents.device_code(section) == {"sm_80": 101, "sm_90": 40, "PTX 90": 24}
    assert contents.device_code(b"") == {}
