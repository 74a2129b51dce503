"""Where a number comes from: machine, versions, commit, and how busy the machine was."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from . import __version__
from .backends import backends

REPOSITORY = Path(__file__).resolve().parents[1]
"""The source tree; of an installed package, the folder that holds everybody's."""
PACKAGES = ("torch", "transformers", "triton", "numpy")
"""Those that a result may depend on."""


def provenance(device: str = "cpu") -> dict[str, Any]:
    """Facts about this machine and this checkout, for the head of a results file."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": cuda_device() if device.startswith("cuda") else cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": load_average(),
        "scheduling": scheduling(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "backends": {b.name: b.detail if b.available else f"not available: {b.detail}" for b in backends()},
        "commit": git("rev-parse", "HEAD"),
        "uncommitted": changed_sources(),
        "sources": sources(),
    }


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str | None]:
    """Version of Python and of each package, None where it is not installed. Nothing is imported.

    This package's is that of the code that runs, which need not be the one that is installed.
    """
    found: dict[str, str | None] = {"python": platform.python_version(), "affinity_pool": __version__}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def cpu() -> str:
    """Name, family and model of the processor: a virtual machine's name alone often says little."""
    facts: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    except OSError:
        return platform.processor() or platform.machine()
    name = facts.get("model name", platform.machine())
    if "cpu family" not in facts:
        return name
    cache = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    l3 = f", L3 {cache.read_text().strip()}" if cache.exists() else ""
    return f"{name} (family {facts['cpu family']}, model {facts.get('model', '?')}{l3})"


def cuda_device() -> str:
    """Name, driver and memory clock of the current GPU."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.mem", "--format=csv,noheader"]
    smi = output(query)
    return smi.splitlines()[torch.cuda.current_device()] if smi else torch.cuda.get_device_name()


def load_average() -> list[float] | None:
    """Of the last 1, 5 and 15 minutes."""
    return [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None


def scheduling() -> str | None:
    """How this process competes with others: its policy and priority."""
    if not hasattr(os, "sched_getscheduler"):
        return None
    names = {os.SCHED_OTHER: "other", os.SCHED_FIFO: "fifo", os.SCHED_RR: "rr", os.SCHED_BATCH: "batch"}
    policy = os.sched_getscheduler(0)
    return f"{names.get(policy, policy)}, nice {os.getpriority(os.PRIO_PROCESS, 0)}"


def changed_sources() -> list[str] | None:
    """Files that decide the result and differ from the commit; None outside a checkout."""
    programs = (f":(glob){folder}/**/*.py" for folder in ("benchmarks", "examples"))
    code = ("csrc", "triton_kernels", "affinity_pool", *programs, "setup.py")
    status = git("status", "--porcelain", "--", *code)
    return None if status is None else sorted(line[2:].strip() for line in status.splitlines())


def sources() -> str:
    """SHA-256 over what the package is built from: says which code ran where there is no commit, as in a plain copy.

    Of an installed package, over its Python files.
    """
    digest = hashlib.sha256()
    linked = ("triton_kernels", "benchmarks")  # in a checkout the package has these by links, and ** follows none
    files = {path for part in ("", *linked) for path in REPOSITORY.glob(f"affinity_pool/{part}/**/*.py")}
    if is_source_tree():
        files |= {*REPOSITORY.glob("csrc/**/*"), REPOSITORY / "setup.py"}
    for path in sorted(file for file in files if file.is_file()):
        digest.update(path.relative_to(REPOSITORY).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def is_source_tree() -> bool:
    """Whether the folder above the package is this project's: a checkout, or a copy of one."""
    try:
        return 'name = "affinity_pool"' in (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return False


def git(*arguments: str) -> str | None:
    """What git says of this project's checkout; None outside one, though it be inside somebody's repository."""
    command = ["git", "-C", str(REPOSITORY)]
    if not is_source_tree() or output([*command, "rev-parse", "--show-prefix"]) != "":
        return None
    return output([*command, *arguments])


def output(command: list[str]) -> str | None:
    """Of a command that succeeds. Git is told nothing of another repository, as a hook's environment would."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_") or k.startswith("GIT_CONFIG")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30, env=environment)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.rstrip("\n")
