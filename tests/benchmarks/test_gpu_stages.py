"""The stages of gpu_check without a GPU: their order and limits, how commands end, what reports and tools say."""

from __future__ import annotations

import importlib.util
import os
import time
from pathlib import Path
from typing import Any

import pytest
from processes import alive, until

from affinity_pool.benchmarks.gpu_check import shell as gpu_shell
from affinity_pool.benchmarks.gpu_check import stages as gpu_stages
from affinity_pool.benchmarks.gpu_check.shell import (
    ROOT,
    CutError,
    FailedError,
    Gpu,
    IncompleteError,
    Shell,
    SkippedError,
)
from affinity_pool.benchmarks.gpu_check.stages import STAGES, Report

GPU = Gpu("NVIDIA Z100 80GB", "9.0", None)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path, tmp_path / "logs" / "stage.log", 60, GPU)


def test_a_stage_and_its_tables_take_less_than_500_s() -> None:
    for parts in STAGES.values():
        assert sum(part.limit for part in parts) <= 480


def test_cheap_truths_come_first() -> None:
    parts = [(stage, part.name) for stage, row in STAGES.items() for part in row]
    order = [
        ("build", "library"),
        ("build", "cuda against the reference"),
        ("build", "headline"),
        ("tests-cuda", "claims"),
        ("tests-triton", "claims"),
        ("sanitizer", "memcheck on cuda"),
        ("bench", "sweep"),
        ("cost", "one prompt"),
    ]
    assert [parts.index(part) for part in order] == sorted(parts.index(part) for part in order)


def test_the_tests_that_measure_run_alone_and_after_the_others(monkeypatch: pytest.MonkeyPatch, shell: Shell) -> None:
    commands: list[str] = []
    monkeypatch.setattr(gpu_stages, "find_spec", lambda name: name)  # all is installed
    monkeypatch.setattr(Shell, "python", lambda self, *words, **_: commands.append(" ".join(words)) or "")
    monkeypatch.setattr(gpu_stages, "Report", lambda _: type("", (), {"verdict": lambda *_: "passed"}))
    for part in gpu_stages.on("cuda"):
        assert part.do(shell) == "passed"
    assert [("-n " in command, "test_measuring" in command) for command in commands] == [
        (True, False),
        (True, True),
        (False, True),
    ]
    assert "--ignore=tests/gpu/test_measuring.py" in commands[1]


def test_a_command_over_its_limit_is_killed_with_its_children(shell: Shell, tmp_path: Path) -> None:
    grandchild = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    child = (
        f"import subprocess, sys; print('started', flush=True); subprocess.run([sys.executable, '-c', {grandchild!r}])"
    )
    shell.limit = 2
    begin = time.monotonic()
    with pytest.raises(CutError, match="killed after 2 s:\nstarted"):
        shell.python("-c", child)
    assert time.monotonic() - begin < 20
    pid = int((tmp_path / "pid").read_text())
    until(lambda: not alive(pid))


def test_a_command_stays_in_the_session_that_started_it(shell: Shell) -> None:
    """What ends the session ends it too; in a session of its own it would hold the GPU after a kill of gpu_check."""
    said = shell.python("-c", "import os; print(os.getsid(0), os.getpgid(0) == os.getpid())")
    assert said.split() == [str(os.getsid(0)), "True"]


def test_a_part_over_its_limit_starts_nothing_more(shell: Shell) -> None:
    shell.started -= shell.limit
    with pytest.raises(CutError, match="over 60 s, before python"):
        shell.python("-c", "print(1)")


def test_a_failed_command_shows_the_end_of_its_output(shell: Shell) -> None:
    with pytest.raises(FailedError, match=r"^python\S* -c .* ended with status 3:\n(.|\n)*line 99$") as error:
        shell.python("-c", "import sys; [print('line', i) for i in range(100)]; sys.exit(3)")
    assert "line 5\n" not in str(error.value)
    assert "line 5\n" in shell.log.read_text()
    with pytest.raises(FailedError, match="ended with SIGKILL"):
        shell.python("-c", "import os; os.kill(os.getpid(), 9)")


def test_what_there_is_is_kept_while_a_command_runs(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    monkeypatch.setattr(gpu_shell, "KEEP_EVERY", 0.05)
    shell.keep = lambda: kept.append(1)
    shell.python("-c", "import time; time.sleep(0.5)")
    assert len(kept) > 2


def test_commands_see_this_checkout(shell: Shell) -> None:
    assert shell.python("-c", "import os; print(os.environ['PYTHONPATH'])").startswith(str(ROOT))
    assert "$ " in shell.log.read_text()


def test_a_missing_package_is_a_reason_to_skip_and_says_how_to_bring_it() -> None:
    with pytest.raises(SkippedError, match=r"needs no_such_package, not installed here; .*pip install --no-index"):
        gpu_stages.need("json", "no_such_package")


def test_without_triton_its_parts_are_skipped(shell: Shell) -> None:
    shell.gpu = Gpu("NVIDIA Z100", "9.0", "triton is not installed: pip install triton")
    for part in [*STAGES["tests-triton"], STAGES["sanitizer"][-1], STAGES["build"][2]]:
        with pytest.raises(SkippedError, match="triton is not installed"):
            part.do(shell)


CASES = """
<testcase name="test_a[cuda]"/><testcase name="test_b[cuda-float32]"/><testcase name="test_d[x-cuda]"/>
<testcase name="test_c[triton-1]"/><testcase name="test_says_no_cuda_here"/>
<testcase name="test_e[cuda]"><failure/></testcase><testcase name="test_f[cuda]"><error/></testcase>
"""


def report(path: Path, *reasons: str) -> Report:
    skips = "".join(f'<testcase name="test_g[cuda]"><skipped message="{why}"/></testcase>' for why in reasons)
    path.write_text(f"<testsuites><testsuite>{CASES}{skips}</testsuite></testsuites>")
    return Report(path)


def test_a_report_counts_by_backend_in_the_parameters(tmp_path: Path) -> None:
    found = report(tmp_path / "r.xml", "a GPU clamps them", "a GPU clamps them")
    assert found.passed == {"cuda": 3, "triton": 1}
    assert found.verdict("cuda", "tests/op") == "3 passed on cuda, 1 passed on triton; skipped 2 (a GPU clamps them)"


TESTS = """
import pytest

@pytest.mark.parametrize("backend", ["cuda"])
def test_runs(backend):
    pass

@pytest.mark.parametrize("backend", ["cuda"])
def test_opcheck(backend):
    pytest.skip("torch.library.opcheck of torch 2.99.0 needs expecttest")
"""


def test_without_expecttest_the_part_is_incomplete_and_says_how_to_bring_it(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]")
    with pytest.raises(IncompleteError, match=r"^1 passed on cuda; skipped 1 \(torch.*needs expecttest\)") as error:
        gpu_stages.tests("cuda", "device", str(tmp_path))(shell)
    assert "pip download -d wheels expecttest" in str(error.value)
    assert "--no-index --no-deps --target site wheels/*.whl` and PYTHONPATH=site" in str(error.value)


def test_opcheck_without_expecttest_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    path = ROOT / "tests" / "gpu" / "test_compiled.py"
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    spec = importlib.util.spec_from_file_location("gpu_test_compiled", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def missing(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'expecttest'", name="expecttest")

    monkeypatch.setattr(torch.library, "opcheck", missing)
    with pytest.raises(pytest.skip.Exception) as skipped:
        module.opcheck()
    assert gpu_stages.WANTING.search(str(skipped.value))
    assert str(skipped.value).endswith("needs expecttest")


def test_too_little_memory_is_incomplete_as_well(tmp_path: Path) -> None:
    with pytest.raises(IncompleteError, match=r"needs 16 GB.*are there\)$"):
        report(tmp_path / "r.xml", "needs 16 GB of free GPU memory, 3.0 GB are there").verdict("cuda", "tests/gpu")


def test_only_skipped_tests_are_a_failure(shell: Shell) -> None:
    """As the GPU's tests are here: all of them skip, and that is no proof of anything."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("they run here")
    measuring = gpu_stages.tests("cuda", "measuring", "tests/gpu/test_measuring.py")
    with pytest.raises(FailedError, match=r"no test of \S+ ran on cuda; skipped \d+ \(needs a CUDA"):
        measuring(shell)


def library(shell: Shell, monkeypatch: pytest.MonkeyPatch, *says: tuple[bool, str], newer: bool = True) -> list[Any]:
    """What was built, by TORCH_CUDA_ARCH_LIST, while backends() says one thing after the other."""
    built: list[Any] = []
    answers = iter(says)
    monkeypatch.setattr(gpu_stages, "is_newer_than_its_sources", lambda: newer)
    monkeypatch.setattr(gpu_stages, "cuda_kernel", lambda _: next(answers))
    monkeypatch.setattr(Shell, "python", lambda self, *_, **env: built.append(env["TORCH_CUDA_ARCH_LIST"]) or "")
    built.append(gpu_stages.library(shell))
    return built


def test_a_library_that_was_brought_along_is_not_built_again(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    right, wrong = "built for sm_80, sm_90 and PTX", "built for sm_80"
    assert library(shell, monkeypatch, (True, right)) == [f"found built: {right}"]
    assert library(shell, monkeypatch, (True, wrong), (True, right)) == ["9.0", f"built: {right}"]
    assert library(shell, monkeypatch, (False, "not built"), (True, right)) == ["9.0", f"built: {right}"]
    assert library(shell, monkeypatch, (True, right), newer=False) == ["9.0", f"built: {right}"]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0")
    assert library(shell, monkeypatch, (True, right), newer=False)[0] == "8.0;9.0"
    with pytest.raises(FailedError, match="built, but there is no CUDA backend: no nvcc"):
        library(shell, monkeypatch, (False, "no nvcc"), newer=False)


def test_a_library_older_than_a_source_is_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "csrc").mkdir()
    for order, name in enumerate(["setup.py", "csrc/a.cu", "_C.abi3.so", "csrc/b.cu"]):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (order, order))
    monkeypatch.setattr(gpu_stages, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_stages, "LIBRARY", tmp_path / "_C.abi3.so")
    assert not gpu_stages.is_newer_than_its_sources()
    (tmp_path / "csrc" / "b.cu").unlink()
    assert gpu_stages.is_newer_than_its_sources()
    gpu_stages.LIBRARY.unlink()
    assert not gpu_stages.is_newer_than_its_sources()


HELP = """General options:
  -h [ --help ]                         Produce this help message.
  --kernel-name arg                     key1=val1,key2=val2,...
                                        see --no-such-option
  --print-limit arg (=100)              When this is set, stop
  --target-processes arg (=all)         Select which processes

Memcheck-specific options:
  --report-api-errors arg (=explicit)   Print errors if any API call fails.
"""


def test_the_sanitizer_gets_the_options_that_its_help_offers() -> None:
    """HELP is in the form of compute-sanitizer 2025.3."""
    cuda = ["--kernel-name", "kernel_substring=affinity_pool"]
    rest = ["--report-api-errors", "no", "--target-processes", "application-only", "--print-limit", "20"]
    assert gpu_stages.sanitizer_options(HELP, "cuda") == rest + cuda
    older = HELP.replace("--kernel-name", "--kernel-regex").replace("--report-api-errors", "--report-errors")
    assert gpu_stages.sanitizer_options(older, "cuda") == [*rest[2:], "--kernel-regex", cuda[1]]
    assert gpu_stages.sanitizer_options("", "cuda") == []
    triton = gpu_stages.sanitizer_options(HELP, "triton")
    assert {"kernel_substring=nearest_match", "kernel_substring=means"} <= set(triton)
    assert triton.count("--kernel-name") == len(gpu_stages.triton_kernels())


def test_the_filters_name_our_kernels() -> None:
    """A mangled name has its namespace's; Triton's names are the functions'."""
    sources = [path.read_text() for path in (ROOT / "csrc" / "cuda").glob("*.cu*")]
    kernels = [text for text in sources if "__global__" in text]
    assert kernels
    assert all("namespace affinity_pool" in text.split("__global__")[0] for text in kernels)
    assert "def affinity_pool_planted(" in (ROOT / "benchmarks" / "gpu_check" / "planted_fault.py").read_text()


@pytest.fixture
def sanitizer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Puts a compute-sanitizer on the PATH that says and returns what it is told."""

    def install(script: str) -> None:
        tool = tmp_path / "bin" / "compute-sanitizer"
        tool.parent.mkdir(exist_ok=True)
        offers = f"if [ $1 = --help ]; then cat <<'END'\n{HELP}\nEND\nexit; fi"
        tool.write_text(f"#!/bin/sh\n{offers}\necho $PYTORCH_NO_CUDA_MEMORY_CACHING $@\n{script}\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)

    return install


def test_each_tool_runs_on_our_kernels_alone(shell: Shell, sanitizer: Any) -> None:
    sanitizer("for last; do :; done; echo $last: 14 shapes")
    for part in STAGES["sanitizer"][1:]:
        assert part.do(shell) == f"nothing found; {part.name.split()[-1]}: 14 shapes"
    log = shell.log.read_text()
    assert "1 --tool racecheck --error-exitcode 9 --report-api-errors no --target-processes application-only" in log
    assert "--kernel-name kernel_substring=affinity_pool" in log
    assert "--kernel-name kernel_substring=scan" in log


def test_what_the_sanitizer_finds_is_a_failure(shell: Shell, sanitizer: Any) -> None:
    sanitizer("echo Race reported; exit 9")
    with pytest.raises(FailedError, match=r"racecheck on cuda ended with status 9:\n(.|\n)*Race reported"):
        gpu_stages.sanitizer("racecheck", "cuda")(shell)


def test_a_sanitized_program_that_never_ran_is_a_failure(shell: Shell, sanitizer: Any) -> None:
    sanitizer("exit 0")
    with pytest.raises(FailedError, match="memcheck on cuda found nothing, but did not come to the end"):
        gpu_stages.sanitizer("memcheck", "cuda")(shell)


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo '==== Invalid __global__ write of size 4'; exit 9", True),
        ("exit 0", False),
        ("echo Error; exit 9", False),
    ],
)
def test_the_planted_fault_has_to_be_found(shell: Shell, sanitizer: Any, script: str, found: bool) -> None:
    sanitizer(script)
    if found:
        assert gpu_stages.planted(shell) == "a planted store beyond the end is found"
    else:
        with pytest.raises(FailedError, match="did not find a planted fault"):
            gpu_stages.planted(shell)


def test_a_sanitizer_that_cannot_run_is_skipped(shell: Shell, sanitizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sanitizer("echo '========= Error: Device not supported'; exit 1")
    with pytest.raises(SkippedError, match="does not support this device"):
        gpu_stages.sanitizer("memcheck", "cuda")(shell)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    with pytest.raises(SkippedError, match="no compute-sanitizer on the PATH or in /nowhere/bin"):
        gpu_stages.sanitizer("memcheck", "cuda")(shell)


def measured(shell: Shell, monkeypatch: pytest.MonkeyPatch, record: str) -> str:
    def bench(self: Shell, *words: str, **_: str) -> str:
        Path(words[words.index("--out") + 1]).write_text(f'{{"results": [{record}]}}')
        return ""

    monkeypatch.setattr(Shell, "python", bench)
    return gpu_stages.suite("gpu-headline")(shell)


def test_the_headline_is_a_line_and_incomplete_without_a_contender(shell: Shell, monkeypatch: Any) -> None:
    record = '{"case": {"tokens": 750, "cache": "cold"}, "contenders": {"ours": {"graph": {"us": {"p50": 9.87}}}}%s}'
    assert measured(shell, monkeypatch, record % "") == "750 rows, cold: ours 9.9 us"
    with pytest.raises(IncompleteError, match=r"ours 9.9 us; could not run: triton \(no kernel image\)"):
        measured(shell, monkeypatch, record % ', "failed": {"triton": "no kernel image"}')
