"""gpu_check without a GPU: its exit codes, its limits, what it reports and what it keeps."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"


@pytest.fixture(scope="module")
def gpu_check() -> Any:
    spec = importlib.util.spec_from_file_location("gpu_check", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def shell(gpu_check: Any, tmp_path: Path) -> Any:
    return gpu_check.Shell(tmp_path / "logs" / "stage.log", tmp_path)


@pytest.fixture
def machine(gpu_check: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A GPU by name only, and stages that end as told: the name of an exception, or what a passing stage says."""
    ends: dict[str, Any] = {"build": "built", "tests": "10 passed", "bench": "gpu.json"}

    def stage(name: str) -> Any:
        def run(shell: Any) -> str:
            if isinstance(ends[name], Exception):
                raise ends[name]
            return ends[name]

        return run

    monkeypatch.setattr(gpu_check, "STAGES", {name: stage(name) for name in ends})
    monkeypatch.setattr(gpu_check, "gpu", lambda: "NVIDIA Z100 80GB")
    monkeypatch.setattr(gpu_check, "ask", lambda *_, **__: "")
    return ends


def test_without_a_gpu_it_says_so_and_exits_2(
    gpu_check: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_check, "gpu", lambda: "")
    assert gpu_check.main(["--out", str(tmp_path / "r")]) == 2
    assert "no GPU here" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_an_unknown_stage_is_refused(gpu_check: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_check.main(["benhc"])
    assert "no stage benhc; there are build, tests" in capsys.readouterr().err


def test_every_stage_passing_exits_0(gpu_check: Any, machine: Any, tmp_path: Path, capsys: Any) -> None:
    assert gpu_check.main(["--out", str(tmp_path)]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["PASS", "build"],
        ["PASS", "tests"],
        ["PASS", "bench"],
    ]


def test_one_failing_stage_exits_1_and_the_others_run(
    gpu_check: Any, machine: Any, tmp_path: Path, capsys: Any
) -> None:
    machine["tests"] = gpu_check.FailedError("3 failed:\nthe end of the log")
    machine["build"] = gpu_check.SkippedError("needs nothing")
    assert gpu_check.main(["--out", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "SKIP  build" in out
    assert "3 failed:\nthe end of the log" in out
    assert "PASS  bench" in out
    assert "| tests | FAIL |" in (tmp_path / "summary.md").read_text()


def test_a_skipped_stage_is_no_failure(gpu_check: Any, machine: Any, tmp_path: Path) -> None:
    machine["bench"] = gpu_check.SkippedError("needs transformers, not installed here")
    assert gpu_check.main(["--out", str(tmp_path)]) == 0
    assert "| bench | SKIP |" in (tmp_path / "summary.md").read_text()


def test_a_stage_alone_keeps_what_others_found(gpu_check: Any, machine: Any, tmp_path: Path) -> None:
    gpu_check.main(["--out", str(tmp_path)])
    machine["bench"] = gpu_check.FailedError("slow")
    assert gpu_check.main(["bench", "--out", str(tmp_path)]) == 1
    stages = json.loads((tmp_path / "gpu-check.json").read_text())["stages"]
    assert {name: stage["status"] for name, stage in stages.items()} == {
        "build": "PASS",
        "tests": "PASS",
        "bench": "FAIL",
    }


def test_results_go_to_a_folder_of_the_gpu(gpu_check: Any, machine: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    gpu_check.main(["build"])
    assert (tmp_path / "benchmarks" / "results" / "nvidia-z100-80gb" / "summary.md").exists()


def test_a_command_over_its_limit_is_killed_with_its_children(gpu_check: Any, shell: Any, tmp_path: Path) -> None:
    child = "import subprocess, sys; print('begun', flush=True); p = subprocess.Popen(['sleep', '60'])"
    child += f"; open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid)); p.wait()"
    begin = time.monotonic()
    with pytest.raises(gpu_check.FailedError, match=r"was killed after 2 s:\n.*begun"):
        shell.python("-c", child, limit=2)
    assert time.monotonic() - begin < 20
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not alive(pid):
            break
        time.sleep(0.05)
    assert not alive(pid)


def alive(pid: int) -> bool:
    """Whether it runs: a killed process may stay as a zombie where nobody collects it."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_stage_over_its_limit_starts_nothing_more(gpu_check: Any, shell: Any) -> None:
    shell.started -= gpu_check.LIMIT
    with pytest.raises(gpu_check.FailedError, match="over 570 s, before -c"):
        shell.python("-c", "print(1)")


def test_a_failed_command_shows_the_end_of_its_output(gpu_check: Any, shell: Any) -> None:
    with pytest.raises(gpu_check.FailedError, match=r"ended with status 3:\n(.|\n)*line 99$") as error:
        shell.python("-c", "import sys; [print('line', i) for i in range(100)]; sys.exit(3)")
    assert "line 5\n" not in str(error.value)
    assert "line 5\n" in shell.log.read_text()
    with pytest.raises(gpu_check.FailedError, match="ended with SIGKILL"):
        shell.python("-c", "import os; os.kill(os.getpid(), 9)")


def test_commands_see_this_checkout(shell: Any) -> None:
    assert shell.python("-c", "import os; print(os.environ['PYTHONPATH'])").startswith(str(FILE.parents[1]))
    assert "$ " in shell.log.read_text()


def test_all_parts_of_a_stage_run_before_it_fails(gpu_check: Any) -> None:
    def fails() -> str:
        raise gpu_check.FailedError("first")

    with pytest.raises(gpu_check.FailedError, match="first\nsecond"):
        gpu_check.each(fails, lambda: "second")


def test_a_missing_package_is_a_reason_to_skip(gpu_check: Any) -> None:
    with pytest.raises(gpu_check.SkippedError, match="needs no_such_package, not installed here"):
        gpu_check.need(("json", "no_such_package"))


def test_a_report_counts_by_backend_in_the_parameters(gpu_check: Any, tmp_path: Path) -> None:
    xml = tmp_path / "r.xml"
    cases = ["test_a[cuda]", "test_b[cuda-float32]", "test_c[triton-1]", "test_says_no_cuda_here", "test_d[x-cuda]"]
    body = "".join(f'<testcase name="{name}"/>' for name in cases)
    body += '<testcase name="test_e[cuda]"><failure/></testcase><testcase name="test_f[cuda]"><error/></testcase>'
    body += '<testcase name="test_g[triton]"><skipped message="needs expecttest"/></testcase>' * 2
    xml.write_text(f"<testsuites><testsuite>{body}</testsuite></testsuites>")
    report = gpu_check.Report(xml)
    assert report.passed == {"cuda": 3, "triton": 1}
    assert report.reasons() == "2 (needs expecttest)"


def test_only_skipped_tests_are_a_failure(gpu_check: Any, shell: Any) -> None:
    """As the GPU's tests are here: all of them skip, and that is no proof of anything."""
    if gpu_check.gpu():
        pytest.skip("they run here")
    with pytest.raises(gpu_check.FailedError, match=r"no test of tests/gpu ran on cuda; skipped \d+ \(needs a CUDA"):
        gpu_check.pytest(shell, "cuda", "tests/gpu")


@pytest.fixture
def sanitizer(gpu_check: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Puts a compute-sanitizer on the PATH that says and returns what it is told."""

    def install(script: str) -> None:
        tool = tmp_path / "bin" / "compute-sanitizer"
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f"#!/bin/sh\necho $PYTORCH_NO_CUDA_MEMORY_CACHING $@\n{script}\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)

    monkeypatch.setattr(gpu_check, "backends", lambda _: {"triton": {"available": True}})
    return install


def test_sanitizer_runs_each_tool(gpu_check: Any, shell: Any, sanitizer: Any) -> None:
    sanitizer("exit 0")
    said = gpu_check.sanitizer(shell)
    assert said == "nothing found by memcheck on cuda, racecheck on cuda, synccheck on cuda, memcheck on triton"
    assert "1 --tool racecheck --error-exitcode 9" in shell.log.read_text()


def test_sanitizer_findings_are_a_failure(gpu_check: Any, shell: Any, sanitizer: Any) -> None:
    sanitizer("case $2 in racecheck) echo Race reported; exit 9;; esac")
    with pytest.raises(gpu_check.FailedError, match=r"racecheck on cuda ended with status 9:\n(.|\n)*Race reported"):
        gpu_check.sanitizer(shell)


def test_sanitizer_that_cannot_run_is_skipped(
    gpu_check: Any, shell: Any, sanitizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sanitizer("echo '========= Error: Device not supported'; exit 1")
    with pytest.raises(gpu_check.SkippedError, match="does not support this device"):
        gpu_check.sanitizer(shell)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    with pytest.raises(gpu_check.SkippedError, match="no compute-sanitizer on the PATH or in /nowhere/bin"):
        gpu_check.sanitizer(shell)
