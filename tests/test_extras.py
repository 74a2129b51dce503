"""What each part needs beside torch: the benchmarks nothing, the command line typer and rich, its experiments more."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import affinity_pool

ROOT = Path(affinity_pool.__file__).parents[1]
TORCH, CLI = ("torch",), ("torch", "rich", "typer")


def needed(names: tuple[str, ...]) -> set[str]:
    """The distributions and all that they need."""
    found: set[str] = set()
    ahead = list(names)
    while ahead:
        name = ahead.pop().lower().replace("_", "-")
        try:
            requirements = [Requirement(text) for text in distribution(name).requires or ()]
        except PackageNotFoundError:
            continue  # nothing that this system needs
        if name not in found:
            found.add(name)
            ahead += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


class Environment:
    """An environment that holds some distributions, what they need, and this package, as a checkout."""

    def __init__(self, site: Path, names: tuple[str, ...]) -> None:
        self.site = site
        for name in needed(names):
            home = distribution(name)
            for part in {Path(file).parts[0] for file in home.files or ()} - {"..", "__pycache__"}:
                link = site / part
                if not link.exists():
                    link.symlink_to(home.locate_file(part))

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        paths = f"{ROOT}{os.pathsep}{self.site}"
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": paths,
            "COLUMNS": "200",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [sys.executable, "-S", "-W", "ignore", *arguments]  # torch warns where there is no numpy
        return subprocess.run(command, env=environment, cwd=self.site, capture_output=True, text=True)


@pytest.fixture(scope="module")
def torch_alone(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("torch"), TORCH)


@pytest.fixture(scope="module")
def torch_and_cli(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("cli"), CLI)


def test_the_environments_hold_no_more_than_they_say(torch_alone: Environment, torch_and_cli: Environment) -> None:
    """Else what follows would show nothing."""
    for module in ("typer", "rich"):
        assert torch_alone.python("-c", f"import {module}").returncode == 1
        assert torch_and_cli.python("-c", f"import {module}").returncode == 0
    for module in ("transformers", "safetensors", "matplotlib", "soundfile", "datasets", "jiwer"):
        assert f"No module named {module!r}" in torch_and_cli.python("-c", f"import {module}").stderr


def test_the_benchmarks_need_torch_alone(torch_alone: Environment) -> None:
    suite = ["overhead", "--rounds", "5", "--seconds", "0.02", "--out", "overhead.json"]
    measured = torch_alone.python("-m", "affinity_pool.benchmarks", *suite)
    assert measured.returncode == 0, measured.stderr
    assert measured.stdout.startswith("| a call on [1, 64] float32 |")
    rendered = torch_alone.python("-m", "affinity_pool.benchmarks.render", "overhead.json")
    assert rendered.returncode == 0, rendered.stderr
    assert rendered.stdout.startswith(measured.stdout.partition("\n\n")[0])


def test_serving_needs_torch_alone_and_embed_names_its_extra(torch_alone: Environment) -> None:
    assert torch_alone.python("-c", "import affinity_pool.serving").stderr == ""
    run = torch_alone.python("-c", "from affinity_pool.serving import embed")
    expected = "affinity_pool.serving.embed needs transformers 4.55 or newer: pip install 'affinity_pool[models]'"
    assert run.stderr.endswith(f"ImportError: {expected}\n")


@pytest.mark.parametrize("module", ["affinity_pool", "affinity_pool.cli"])
def test_the_command_line_without_its_packages_names_its_extra(torch_alone: Environment, module: str) -> None:
    run = torch_alone.python("-m", module, "env")
    assert (run.returncode, run.stderr) == (1, "affinity-pool needs typer: pip install 'affinity_pool[cli]'\n")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["--help"], ["eval", "bench", "env"]),
        (["env"], ["reference", "not installed", "torch", affinity_pool.__version__]),
        (["bench", "--help"], ["usage: python -m affinity_pool.cli bench", "gpu-headline", "--contenders"]),
        (["eval", "--help"], ["--model", "--data"]),
    ],
    ids=" ".join,
)
def test_the_command_line_needs_typer_and_rich_alone(
    torch_and_cli: Environment, command: list[str], words: list[str]
) -> None:
    run = torch_and_cli.python("-m", "affinity_pool.cli", *command)
    assert run.returncode == 0, run.stderr
    assert not [word for word in words if word not in run.stdout], run.stdout


def test_an_experiment_without_its_packages_says_what_to_install(torch_and_cli: Environment) -> None:
    commands = ["demo", "eval", "oracle", "probe", "dynamics", "cost", "calibrate", "serving"]
    program = """
import sys
from affinity_pool.cli.commands import app
for command in sys.argv[1:]:
    print(app([command], standalone_mode=False))
"""
    run = torch_and_cli.python("-c", program, *commands)
    assert (run.returncode, run.stderr) == (0, "")
    lines = run.stdout.splitlines()
    assert len(lines) == 2 * len(commands)
    assert lines[1::2] == ["1"] * len(commands)
    assert not [line for line in lines[::2] if not line.startswith("Error: this command needs ")]
    assert not [line for line in lines[::2] if ": pip install " not in line]
