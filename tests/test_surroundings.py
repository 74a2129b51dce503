"""The package in a process, an install and an environment that are not the developer's."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import affinity_pool

PACKAGE = Path(affinity_pool.__file__).parent

USE = """
import torch, affinity_pool as ap
x = torch.ones(2, 4, 3, requires_grad=True)
ap.pool_padded(x).values.sum().backward()
found = {"pool": ap.pool(x[0]).counts.tolist(), "padded": ap.pool_padded(x).counts.tolist()}
if found != {"pool": [4], "padded": [[4, 0, 0, 0]] * 2}: raise SystemExit(str(found))
pooler = ap.AffinityPooler()
pooler.step(x[0])
if pooler.flush().counts.tolist() != [4]: raise SystemExit("streaming")
try: ap.pool(x)
except ValueError as error: print(error)
print(*(b.name for b in ap.backends()))
"""
SAID = "x must have shape [N, D], got [2, 4, 3]\ncuda triton cpu reference\n"


def python(*arguments: str, site: Path = PACKAGE.parent, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter whose environment holds nothing but what is given, PYTHONPATH and PATH."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(site), **environment}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("flags", [["-OO"], ["-W", "error"], ["-I"], ["-B"]], ids=" ".join)
def test_flags_of_the_interpreter_change_nothing(flags):
    """-OO drops assertions and docstrings; -W error makes an error of every warning."""
    flags = [*flags, "-c", f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r})\n" + USE]
    run = python(*flags)
    assert (run.returncode, run.stdout) == (0, SAID), run.stderr


@pytest.mark.parametrize("home", [None, "/proc/nowhere", ""])
def test_no_home_is_needed(home):
    run = python("-c", USE, **({} if home is None else {"HOME": home}))
    assert (run.returncode, run.stdout) == (0, SAID), run.stderr


def copy_of_the_package(site: Path) -> Path:
    return shutil.copytree(PACKAGE, site / "affinity_pool", ignore=shutil.ignore_patterns("__pycache__"))


def test_an_install_that_cannot_be_written_to_works_and_is_left_as_it_was(tmp_path):
    copy_of_the_package(tmp_path)
    folders = [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]
    before = sorted(tmp_path.rglob("*"))
    for folder in folders:
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        run = python("-c", USE, site=tmp_path, PYTHONDONTWRITEBYTECODE="1")  # root could write there all the same
    finally:
        for folder in folders:
            folder.chmod(stat.S_IRWXU)
    assert (run.returncode, run.stdout) == (0, SAID), run.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_without_triton_the_rest_is_there(tmp_path):
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("raise ImportError('broken install')\n")
    run = python("-c", USE + "print(ap.backends()[1].available)", site=f"{tmp_path}:{PACKAGE.parent}")
    assert (run.returncode, run.stdout) == (0, SAID + "False\n"), run.stderr


AGAIN = """
import gc, importlib, sys
import torch, affinity_pool as ap
x = torch.ones(3, 2, requires_grad=True)
{again}
ap.pool(x).values.sum().backward()  # what is there goes on
print(x.grad.tolist(), len(ap.backends()))
"""
FORGET = """
for name in [name for name in sys.modules if name.startswith("affinity_pool")]: del sys.modules[name]
gc.collect()
sys.path.insert(0, {path!r})
try: import affinity_pool
except ImportError as error: print(error)
"""
RELOAD = """
try: importlib.reload(sys.modules[{name!r}])
except ImportError as error: print(error)
"""


def test_importing_again_what_was_forgotten_is_refused_in_words():
    run = python("-c", AGAIN.format(again=FORGET.format(path=str(PACKAGE.parent))))
    said, *rest = run.stdout.splitlines()
    assert said == (
        f"affinity_pool from {PACKAGE} cannot be loaded: this process has already loaded it from {PACKAGE}, and torch "
        "takes an op once; restart the process (in a notebook, the kernel), with one of them on sys.path"
    )
    assert len(rest) == 1, run.stderr


def test_a_second_copy_is_refused_and_both_are_named(tmp_path):
    copy_of_the_package(tmp_path)
    run = python("-c", AGAIN.format(again=FORGET.format(path=str(tmp_path))))
    said, *rest = run.stdout.splitlines()
    assert said.startswith(
        f"affinity_pool from {tmp_path / 'affinity_pool'} cannot be loaded: this process has already loaded it from "
        f"{PACKAGE}, and"
    )
    assert len(rest) == 1, run.stderr


@pytest.mark.parametrize(
    "name", ["", ".ops", ".results", ".pooling", ".backends", ".derivatives", ".streaming", ".triton_kernels"]
)
def test_a_reloaded_module_works_or_is_refused_in_words(name):
    run = python("-c", AGAIN.format(again=RELOAD.format(name="affinity_pool" + name)))
    *said, rest = run.stdout.splitlines()
    assert len(said) == (name == ".ops"), run.stderr
    assert all("has already loaded it from" in line for line in said)
    assert "0.333" in rest
    assert rest.endswith(" 4")
