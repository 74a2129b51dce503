"""The program as a shell sees it: its name, its version, what it completes, and that none of that waits for torch."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import pytest
from commands import invoke

import affinity_pool
from affinity_pool.benchmarks.suites import GPU_SUITES, SUITES
from affinity_pool.cli import bench, options
from affinity_pool.models.settings import PRESETS, Attention
from affinity_pool.models.sites import MEMORY
from affinity_pool.study.experiments.evaluate import run as evaluate
from affinity_pool.study.experiments.evaluate.command import BASELINES
from affinity_pool.study.experiments.oracle import run as oracle
from affinity_pool.study.experiments.oracle.command import OPERATORS
from affinity_pool.study.subject.lslm import DTYPES

PROGRAM = "from affinity_pool.cli.commands import main\nmain()\n"


def python(*arguments: str | Path, **environment: str) -> tuple[str, bool]:
    """What an interpreter prints, and whether it imported torch."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(affinity_pool.__file__).parents[1]), "COLUMNS": "100", **environment},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout, any(line.endswith("| torch") or line.split()[-1] == "torch" for line in run.stderr.splitlines())


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As an install has it."""
    path = tmp_path_factory.mktemp("bin") / "affinity-pool"
    path.write_text(PROGRAM)
    return path


def completed(program: Path, *words: str) -> list[str]:
    """What bash would offer in place of the last word."""
    line = {"COMP_WORDS": " ".join(["affinity-pool", *words]), "COMP_CWORD": str(len(words))}
    output, with_torch = python(program, _AFFINITY_POOL_COMPLETE="complete_bash", **line)
    assert not with_torch, "a shell would wait for it"
    return output.split()


def test_help_names_the_program_and_needs_no_torch(program: Path) -> None:
    output, with_torch = python(program, "--help")
    assert "affinity-pool [" in output
    assert not with_torch


def test_the_version_is_one_line_and_needs_no_torch(program: Path) -> None:
    expected = f"affinity-pool {affinity_pool.__version__} (torch {version('torch')})\n"
    assert python(program, "--version") == (expected, False)
    assert python("-m", "affinity_pool", "--version") == (expected, False)


def test_whatever_else_is_asked_torch_and_the_ops_are_there(program: Path, tmp_path: Path) -> None:
    """An import registers the ops, though the program may have that option or a shell that variable."""
    uses = "import sys, affinity_pool, torch\nprint(torch.ops.affinity_pool.pool, affinity_pool.pool.__name__)\n"
    (tmp_path / "theirs.py").write_text(uses)
    expected = ("affinity_pool.pool pool\n", True)
    assert python(tmp_path / "theirs.py", "--version", _AFFINITY_POOL_COMPLETE="complete_bash") == expected
    output, with_torch = python(program, "env", "--plain")
    assert "reference" in output
    assert with_torch


@pytest.mark.parametrize("module", ["affinity_pool", "affinity_pool.cli"])
def test_help_names_the_module_that_was_started(module: str) -> None:
    assert f"python -m {module} bench [" in python("-m", module, "bench", "--help")[0]
    output, with_torch = python("-m", module, "--help")
    assert f"python -m {module} [" in output
    assert with_torch == (module == "affinity_pool.cli"), "which is for launchers alone"


def test_the_package_can_be_imported_by_what_imports_every_module() -> None:
    assert python("-c", "import affinity_pool.__main__")[0] == ""


def test_commands_options_and_words_are_completed(program: Path) -> None:
    assert completed(program, "") == [
        "demo", "eval", "oracle", "probe", "dynamics", "cost", "calibrate", "serving", "bench", "env",
    ]  # fmt: skip
    assert completed(program, "eval", "--norm") == ["--normaliser"]
    assert completed(program, "eval", "--normaliser", "") == ["plain", "whisper"]
    assert completed(program, "demo", "--sites", "aggressive-") == ["aggressive-counted"]
    assert completed(program, "demo", "--sites", "mine.j") == []  # then bash offers files
    assert completed(program, "eval", "--attention", "plain,p") == ["plain,plain", "plain,proportional"]
    assert completed(program, "bench", "gpu-") == ["gpu-headline", "gpu-sweep"]


@pytest.mark.parametrize(("shell", "words"), [("bash", "complete -o"), ("zsh", "#compdef"), ("fish", "complete --c")])
def test_the_script_for_each_shell_can_be_had(program: Path, shell: str, words: str) -> None:
    script, _ = python(program, _AFFINITY_POOL_COMPLETE=f"source_{shell}")
    assert words in script
    assert f"_AFFINITY_POOL_COMPLETE=complete_{shell}" in script


def test_words_that_are_completed_are_those_that_are_taken() -> None:
    assert {*options.PRESETS} == {*PRESETS, MEMORY}
    assert get_args(Attention) == options.ATTENTIONS
    assert {*options.DTYPES} == {*DTYPES}
    assert {*OPERATORS} == {*oracle.OPERATORS}
    assert BASELINES == evaluate.BASELINES
    assert (tuple(s for s in SUITES if s not in GPU_SUITES), tuple(GPU_SUITES)) == (bench.CPU_SUITES, bench.GPU_SUITES)


def test_env_in_plain_text_has_a_line_for_each_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "do not tell")
    monkeypatch.setenv("AFFINITY_POOL_CPU", "portable")
    output, _ = python("-m", "affinity_pool", "env", "--plain")
    lines = dict(line.split(maxsplit=1) for line in output.splitlines())
    assert lines["reference"].startswith("yes ")
    assert lines["torch"] == version("torch")
    assert lines["typer"] == version("typer")
    assert {"python", "libc", "transformers", "vllm", "commit"} <= {*lines}
    assert lines["AFFINITY_POOL_CPU"] == "portable"
    assert "do not tell" not in output
    assert " ".join(invoke("env")[1].split()).count("AFFINITY_POOL_CPU portable") == 1
