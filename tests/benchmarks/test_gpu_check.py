"""gpu_check without a GPU: what it keeps however it ends, how it goes on, its verdicts and exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import alive, until

from affinity_pool.benchmarks.gpu_check import check as gpu_check
from affinity_pool.benchmarks.gpu_check import record as gpu_record
from affinity_pool.benchmarks.gpu_check import stages as gpu_stages
from affinity_pool.benchmarks.gpu_check.shell import (
    ROOT,
    CutError,
    FailedError,
    Gpu,
    IncompleteError,
    SkippedError,
)
from affinity_pool.benchmarks.gpu_check.stages import Part

GPU = Gpu("NVIDIA Z100 80GB", "9.0", None)


class Machine:
    """A GPU by name only, and stages whose parts end as told: an exception, or what a passing part says."""

    def __init__(self) -> None:
        self.ends: dict[str, dict[str, Any]] = {
            "build": {"library": "built", "headline": "6 us"},
            "tests": {"claims": "10 passed"},
            "bench": {"sweep": "41 cases"},
        }
        self.ran: list[str] = []
        self.limit = 1.0

    def stages(self) -> dict[str, tuple[Part, ...]]:
        return {
            stage: tuple(Part(name, self.limit, self.part(stage, name), always=name == "library") for name in parts)
            for stage, parts in self.ends.items()
        }

    def part(self, stage: str, name: str) -> Callable[[Any], str]:
        def do(shell: Any) -> str:
            self.ran.append(name)
            (shell.folder / f"{name}.txt").write_text(name)
            if isinstance(self.ends[stage][name], Exception):
                raise self.ends[stage][name]
            return self.ends[stage][name]

        return do


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    machine = Machine()
    monkeypatch.setattr(gpu_check, "STAGES", machine.stages())
    monkeypatch.setattr(gpu_check, "find_gpu", lambda: (GPU, "NVIDIA Z100", "Z100 torch 2.11"))
    monkeypatch.setattr(gpu_check, "WORK", tmp_path / "work")
    return machine


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """main takes signals over, as the program it is; pytest wants them back."""
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


def run(out: Path, *arguments: str) -> int:
    return gpu_check.main([*arguments, "--out", str(out)])


def files_in(tar: Path) -> dict[str, str]:
    with tarfile.open(tar) as opened:
        return {m.name: opened.extractfile(m).read().decode() for m in opened.getmembers() if m.isfile()}


def statuses(out: Path, stage: str) -> dict[str, str]:
    parts = json.loads(files_in(out / f"{stage}.tar.gz")[f"logs/{stage}.json"])["parts"]
    return {name: part["status"] for name, part in parts.items()}


def test_without_a_gpu_it_says_so_and_exits_2(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_check, "find_gpu", lambda: None)
    assert run(tmp_path / "r") == 2
    assert "no GPU here" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_an_unknown_stage_is_refused(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_check.main(["benhc"])
    assert "no stage benhc; there are build, tests, bench" in capsys.readouterr().err


def test_every_stage_passing_exits_0(machine: Machine, tmp_path: Path, capsys: Any) -> None:
    assert run(tmp_path / "out") == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line[: line.index(",")] for line in lines[:-1]] == [
        "PASS  build: library",
        "PASS  build: headline",
        "PASS  tests: claims",
        "PASS  bench: sweep",
    ]
    assert lines[-1] == "build PASS, tests PASS, bench PASS"


@pytest.mark.parametrize(
    ("end", "verdict", "code"),
    [
        (FailedError("3 failed:\nthe end of the log"), "FAIL", 1),
        (CutError("was killed after 190 s:\nthe last test"), "CUT", 1),
        (IncompleteError("9 passed on cuda; skipped 3 (needs expecttest)"), "INCOMPLETE", 3),
        (SkippedError("needs transformers, not installed here"), "SKIP", 3),
        (ZeroDivisionError("of the part itself"), "FAIL", 1),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_did_not_pass_decides_the_exit_code_and_the_others_run(
    machine: Machine, tmp_path: Path, capsys: Any, end: Exception, verdict: str, code: int
) -> None:
    machine.ends["tests"]["claims"] = end
    assert run(tmp_path) == code
    assert machine.ran == ["library", "headline", "claims", "sweep"]
    out = capsys.readouterr().out
    assert f"{verdict}  tests: claims" in out
    assert str(end) in out
    summary = (tmp_path / "summary.md").read_text()
    assert f"| tests | claims | {verdict} |" in summary
    assert str(end).splitlines()[-1] in summary


def test_a_failure_outweighs_what_is_incomplete(machine: Machine, tmp_path: Path) -> None:
    machine.ends["build"] = {"library": FailedError("no"), "headline": CutError("late")}
    machine.ends["bench"]["sweep"] = SkippedError("no")
    assert run(tmp_path) == 1
    assert gpu_check.exit_status(["PASS", "SKIP", "FAIL"]) == 1
    assert gpu_check.exit_status(["PASS", "SKIP"]) == 3


def test_the_tar_of_a_stage_is_renewed_after_each_part(machine: Machine, tmp_path: Path, monkeypatch: Any) -> None:
    seen = []

    def look(shell: Any) -> str:
        seen.append(statuses(tmp_path, "build"))
        assert "library.txt" in files_in(tmp_path / "build.tar.gz")
        return "6 us"

    library = machine.stages()["build"][0]
    monkeypatch.setattr(gpu_check, "STAGES", {"build": (library, Part("headline", 1, look))})
    assert run(tmp_path) == 0
    assert seen == [{"library": "PASS", "headline": "CUT"}], "while it runs it is not done"
    assert statuses(tmp_path, "build") == {"library": "PASS", "headline": "PASS"}


def test_eight_files_at_most(machine: Machine, tmp_path: Path) -> None:
    """A tar a stage, the summary, and for a moment the file that becomes one of them."""
    assert len(gpu_stages.STAGES) + 2 <= 8
    run(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        *(f"{stage}.tar.gz" for stage in machine.ends),
        "summary.md",
        "work",
    }


@pytest.mark.parametrize("kept_in", ["the work folder", "the tars"])
def test_a_run_goes_on_where_the_last_one_was(machine: Machine, tmp_path: Path, kept_in: str) -> None:
    machine.ends["build"]["headline"] = CutError("late")
    machine.ends["bench"]["sweep"] = FailedError("slow")
    assert run(tmp_path / "out") == 1
    if kept_in == "the work folder":
        (tmp_path / "out").rename(tmp_path / "gone")
    else:
        (tmp_path / "work").rename(tmp_path / "gone")
    machine.ends["build"]["headline"] = "6 us"
    machine.ran.clear()
    assert run(tmp_path / "out", "build", "tests") == 0
    assert machine.ran == ["library", "headline"], (
        "a library may be gone; tests have passed, and bench was not asked for"
    )
    assert {p.name for p in (tmp_path / "out").glob("*")} >= {"build.tar.gz", "tests.tar.gz", "summary.md"}
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert "| build | headline | PASS |" in summary
    assert "| bench | sweep | FAIL |" in summary
    assert "claims.txt" in files_in(tmp_path / "out" / "tests.tar.gz")


def test_other_code_starts_anew(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, "tests", "bench")
    monkeypatch.setattr(gpu_check, "code_here", lambda _: "changed")
    machine.ran.clear()
    machine.ends["tests"] = {"claims": FailedError("broken")}
    (tmp_path / "work" / "nvidia-z100-80gb" / "tests" / "old.txt").write_text("old")
    assert run(tmp_path, "tests") == 1
    assert machine.ran == ["claims"]
    assert "old.txt" not in files_in(tmp_path / "tests.tar.gz")
    assert "| bench | sweep | PASS (saw " in (tmp_path / "summary.md").read_text()


def test_again_does_all_of_it(machine: Machine, tmp_path: Path) -> None:
    run(tmp_path)
    machine.ran.clear()
    assert run(tmp_path, "tests", "--again") == 0
    assert machine.ran == ["claims"]


def test_a_broken_tar_is_a_stage_not_begun(machine: Machine, tmp_path: Path, capsys: Any) -> None:
    run(tmp_path)
    (tmp_path / "work").rename(tmp_path / "gone")
    whole = (tmp_path / "tests.tar.gz").read_bytes()
    (tmp_path / "tests.tar.gz").write_bytes(whole[: len(whole) // 2])
    machine.ran.clear()
    assert run(tmp_path) == 0
    assert machine.ran == ["library", "claims"]
    assert "tests starts anew" in capsys.readouterr().out


def test_no_part_is_begun_that_might_not_end_in_time(
    machine: Machine, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.limit = 100
    monkeypatch.setattr(gpu_check, "STAGES", machine.stages())
    assert run(tmp_path, "--limit", "99") == 3
    assert machine.ran == []
    assert "build: library may take 100 s, more than is left: not begun" in capsys.readouterr().out
    assert "| build | library | not begun |" in (tmp_path / "summary.md").read_text()
    assert run(tmp_path, "--limit", "110") == 0


def test_results_go_to_a_folder_of_the_gpu(machine: Machine, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    gpu_check.main(["build"])
    assert (tmp_path / "benchmarks" / "results" / "nvidia-z100-80gb" / "summary.md").exists()


def test_what_was_measured_has_its_tables_in_the_summary(machine: Machine, tmp_path: Path, monkeypatch: Any) -> None:
    def measure(shell: Any) -> str:
        (shell.folder / "gpu.json").write_text("{}")
        return "1 case"

    monkeypatch.setattr(gpu_check, "STAGES", {"bench": (Part("sweep", 1, measure),)})
    monkeypatch.setattr(gpu_check, "ask", lambda *arguments, **_: f"table of {Path(arguments[-1]).name}")
    run(tmp_path)
    assert "## bench\n\ntable of gpu.json" in (tmp_path / "summary.md").read_text()
    assert files_in(tmp_path / "bench.tar.gz")["logs/bench.md"] == "table of gpu.json"


def test_code_is_known_by_its_text_and_its_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_record, "ROOT", tmp_path)
    (tmp_path / "setup.py").write_text("1")
    before = gpu_record.code_here("H100")
    assert gpu_record.code_here("H100") == before != gpu_record.code_here("H200")
    (tmp_path / "setup.py").write_text("2")
    assert gpu_record.code_here("H100") != before


@pytest.mark.parametrize(
    "file", ["csrc/cuda/a.cuh", "triton_kernels/scan.py", "benchmarks/timing.py", "benchmarks/gpu_check/stages.py"]
)
def test_code_that_decides_an_outcome_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str) -> None:
    """Also what affinity_pool has by a link: a pattern finds nothing through one."""
    assert (ROOT / file).parent.is_dir()
    monkeypatch.setattr(gpu_record, "ROOT", tmp_path)
    before = gpu_record.code_here("H100")
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text("1")
    assert gpu_record.code_here("H100") != before


def test_it_starts_where_nothing_is_installed(tmp_path: Path) -> None:
    """Neither torch nor affinity_pool, which may be what does not work there."""
    environment = {"PATH": os.environ["PATH"]}
    command = [sys.executable, "-S", str(ROOT / "benchmarks" / "gpu_check"), "--help"]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("usage: gpu_check ")


DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, {benchmarks!r})
from gpu_check import check as gpu_check, shell as gpu_shell
from gpu_check.stages import Part
folder = Path({folder!r})

def quick(shell):
    with (folder / "quick").open("a") as runs:
        runs.write("run ")
    return "done"

def slow(shell):
    (shell.folder / "cases.partial.json").write_text("[1]")
    child = "import os, time; print('child', os.getpid(), flush=True); time.sleep(60)"
    return "slept" if (folder / "go").exists() else shell.python("-c", child)

gpu_shell.KEEP_EVERY = 0.1
gpu_check.WORK = folder / "work"
gpu_check.find_gpu = lambda: (gpu_shell.Gpu("Z100", "9.0", None), "Z100", "Z100")
gpu_check.code_here = lambda machine: "code"
gpu_check.STAGES = {{"tests": (Part("quick", 9, quick), Part("slow", 99, slow)), "bench": (Part("never", 9, quick),)}}
raise SystemExit(gpu_check.main(["--out", str(folder / "out")]))
"""


def log_in(tar: Path) -> str:
    return files_in(tar).get("logs/tests.log", "") if tar.exists() else ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_a_killed_run_leaves_what_it_had_and_the_next_one_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", DRIVER.format(benchmarks=str(ROOT / "benchmarks"), folder=str(tmp_path))]
    tar = tmp_path / "out" / "tests.tar.gz"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: "child " in log_in(tar))  # in the tar while it runs, for a signal that nobody can handle
    process.send_signal(number)
    code = process.wait(10)
    child = int(log_in(tar).split("child ")[-1].split()[0])
    if number == signal.SIGKILL:
        os.kill(child, signal.SIGKILL)  # by the machine, which ends all of the session
        why = "was going on when this was written"
    else:
        assert code == 128 + number
        until(lambda: not alive(child))
        why = f"ended by {number.name}"
    assert statuses(tmp_path / "out", "tests") == {"quick": "PASS", "slow": "CUT"}
    assert files_in(tar)["cases.partial.json"] == "[1]"
    assert not (tmp_path / "out" / "bench.tar.gz").exists()
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert "| tests | quick | PASS |" in summary
    assert re.search(rf"\| tests \| slow \| CUT \|.*\| {why} \|", summary)
    assert "| bench | never | not begun |" in summary

    (tmp_path / "go").touch()
    assert subprocess.run(command, stdout=subprocess.DEVNULL, timeout=20).returncode == 0
    assert statuses(tmp_path / "out", "tests") == {"quick": "PASS", "slow": "PASS"}
    assert (tmp_path / "quick").read_text() == "run run ", "once in tests, once in bench"


def test_make_passes_its_variables_on() -> None:
    said = subprocess.run(
        [
            "make",
            "--dry-run",
            "--no-print-directory",
            "gpu-check",
            "OUT=/some/where",
            "STAGES=build tests-cuda",
            "LIMIT=570",
            "PYTHON=py",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.split() == [
        *["exec", "py", "benchmarks/gpu_check", "build", "tests-cuda", "--out", '"/some/where"', "--limit", "570"]
    ]
