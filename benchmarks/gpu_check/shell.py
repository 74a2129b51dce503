"""How gpu_check runs a command: within a time limit, logged, with what there is kept meanwhile, and nothing left over.

A part of a stage ends by returning what it found, or by raising a :class:`PartError`, whose class is the verdict.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import ClassVar

ROOT = Path(__file__).resolve().parents[2]
TAIL = 25  # lines of a failed command's output that are shown
KEEP_EVERY = 10.0  # seconds between two tars while a command runs: a killed machine loses no more


class PartError(Exception):
    """A part that did not pass."""

    status: ClassVar[str]


class FailedError(PartError):
    """It found something wrong."""

    status = "FAIL"


class CutError(PartError):
    """It was not done within its limit."""

    status = "CUT"


class IncompleteError(PartError):
    """What ran is right; some of it did not run, for want of something."""

    status = "INCOMPLETE"


class SkippedError(PartError):
    """It cannot run here, through no fault of the code."""

    status = "SKIP"


@dataclass(frozen=True)
class Gpu:
    """What torch says of the device, asked in a child: this process stays off it."""

    name: str
    capability: str
    """``9.0``, for instance."""
    without_triton: str | None
    """Why the Triton kernels cannot run here, None if they can."""


@dataclass
class Shell:
    """Runs the commands of one part, all within its limit, and appends what they say to the log of its stage."""

    folder: Path
    """The stage's own: what lies there is kept."""
    log: Path
    limit: float
    gpu: Gpu
    keep: Callable[[], None] = lambda: None
    started: float = field(default_factory=time.monotonic)

    def python(self, *arguments: str, **environment: str) -> str:
        """Output of this python; FailedError if it does not end well."""
        code, said = self.run([sys.executable, *arguments], **environment)
        if code:
            raise FailedError(f"{short([sys.executable, *arguments])} {ended(code)}:\n{tail(said)}")
        return said

    def run(self, command: Sequence[str], **environment: str) -> tuple[int, str]:
        """Exit status and output; when the part's limit is over, the command is killed with all it started."""
        left = self.limit - (time.monotonic() - self.started)
        if left <= 0:
            raise CutError(f"over {self.limit:.0f} s, before {short(command)}")
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        env = {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", **environment}
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a+", errors="replace") as log:
            print(f"\n$ {' '.join(command)}", file=log, flush=True)
            begin = log.tell()
            # A process group and not a session: who ends this process's session ends the child's work on the GPU too.
            child = subprocess.Popen(
                command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT, preexec_fn=os.setpgrp
            )
            try:
                code = self._wait(child, left)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)  # what it leaves running would hold the device
                child.wait()
            log.seek(begin)
            said = log.read()
        if code is None:
            raise CutError(f"{short(command)} was killed after {left:.0f} s:\n{tail(said)}")
        return code, said

    def _wait(self, child: subprocess.Popen[bytes], seconds: float) -> int | None:
        """Exit status, None if there is none after ``seconds``."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            with suppress(subprocess.TimeoutExpired):
                return child.wait(min(left, KEEP_EVERY))
            self.keep()
        return None


def short(command: Sequence[str]) -> str:
    return shorten(" ".join([Path(command[0]).name, *command[1:]]), 80, placeholder=" ...")


def ended(code: int) -> str:
    return f"ended with {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"


def tail(said: str) -> str:
    return "\n".join(said.rstrip().splitlines()[-TAIL:])


def ask(*arguments: str, limit: float = 120) -> str:
    """What this python prints, as far as it comes. Its errors are shown."""
    command = [sys.executable, *arguments]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    try:
        return subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, timeout=limit).stdout
    except subprocess.TimeoutExpired:
        return ""
