"""A copy of the tree: faults are put into it, and tests run on it. The checkout itself stays as it is."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest
import torch  # noqa: F401 (for the forks)

ROOT = Path(__file__).parents[2]
PARTS = ("affinity_pool", "csrc", "tests/op", "tests/emulator")

# Of the processor, not of the clock: several times what all tests take. Who needs more hangs, and is caught.
SECONDS = 150

# A failing example is enough, no one looks for the smallest.
hypothesis.settings.register_profile(
    "mutations",
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)


@dataclass(frozen=True)
class Fault:
    name: str
    file: str
    old: str
    new: str
    also: tuple[tuple[str, str, str], ...] = ()
    """Further (file, old, new) of a fault that two places guard against."""
    check: str = "tests"
    """What shows it: tests, or where tests cannot a sanitizer."""

    @property
    def edits(self) -> list[tuple[str, str, str]]:
        return [(self.file, self.old, self.new), *self.also]


def limit_seconds() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))


def ended_by(status: int) -> str:
    """What a negative exit status says."""
    number = signal.Signals(-status)
    return f"hangs: {SECONDS} s and no end" if number == signal.SIGXCPU else f"crashes: {number.name}"


class Tree:
    def __init__(self, root: Path, keep_libraries: bool) -> None:
        self.root = root
        ignore = shutil.ignore_patterns("__pycache__", ".hypothesis", *([] if keep_libraries else ["*.so"]))
        for part in PARTS:
            shutil.copytree(ROOT / part, root / part, ignore=ignore)
        for part in ("tests/conftest.py", "pyproject.toml"):
            shutil.copy(ROOT / part, root / part)

    @contextlib.contextmanager
    def with_fault(self, fault: Fault) -> Iterator[None]:
        before: dict[Path, str] = {}
        for file, old, new in fault.edits:
            path = self.root / file
            text = path.read_text()
            assert text.count(old) == 1, f"{fault.name}: {old!r} stands {text.count(old)} times in {file}"
            before.setdefault(path, text)
            path.write_text(text.replace(old, new))
        try:
            yield
        finally:
            for path, text in before.items():
                path.write_text(text)

    def failing_tests(self, tests: Sequence[str], environment: dict[str, str], *options: str) -> list[str]:
        """Names of the tests that fail, or what else ended the run.

        The tests run in a fork of this process, which has torch and pytest loaded and the package not: half the time.
        """
        output = self.root / "output.txt"
        child = os.fork()
        if child == 0:
            limit_seconds()
            with output.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            os.chdir(self.root)
            os.environ.update(environment, PYTHONPATH=str(self.root), HYPOTHESIS_PROFILE="mutations", CI="1")
            sys.path.insert(0, str(self.root))
            status = pytest.main(["-q", "--tb=no", "-p", "no:cacheprovider", *options, *tests])
            sys.stdout.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        text = output.read_text()
        failed = [
            line.split(" - ")[0].split(" ", 1)[1]
            for line in text.splitlines()
            if line.startswith(("FAILED ", "ERROR "))
        ]
        if failed or status == 0:
            return failed
        return [ended_by(status) if status < 0 else f"ended with {status}: {text.strip()[-200:]}"]
