"""Make torchvision, torchaudio and torchcodec importable beside a torch for CPUs, or get out of the way.

    python tests/with_vllm/mend_environment.py

vLLM for CPUs is installed with a torch for CPUs, but these three come compiled for CUDA, and transformers imports
whatever of them is installed. Most of torchvision and torchaudio is Python and works without the compiled part, and
audio models need no more. What imports as it is is left alone, so that a second run finds nothing to do.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path


def folder(package: str) -> Path | None:
    """Where it is installed, found without importing it."""
    try:
        return Path(str(distribution(package).locate_file(package)))
    except PackageNotFoundError:
        return None


def failure(package: str) -> str | None:
    """The last line of what went wrong when a fresh interpreter imported it, or None."""
    run = subprocess.run([sys.executable, "-c", f"import {package}"], capture_output=True, text=True)
    return None if run.returncode == 0 else (run.stderr.strip().splitlines() or [f"exit status {run.returncode}"])[-1]


def without_libraries(package: Path) -> str:
    """Both packages take a missing library for a build without it, and raise at one that does not load."""
    libraries = sorted(package.rglob("*.so"))
    for library in libraries:
        library.rename(library.with_suffix(".so.not-for-this-torch"))
    return f"set {len(libraries)} compiled libraries aside"


def without_registrations(package: Path) -> str:
    """torchvision describes its compiled operators to torch, those too that are not there."""
    (package / "_meta_registrations.py").write_text("")
    return f"emptied _meta_registrations.py, {without_libraries(package)}"


def uninstall(package: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", package], check=True)


MENDS: dict[str, Callable[[Path], str] | None] = {
    "torchvision": without_registrations,
    "torchaudio": without_libraries,
    "torchcodec": None,  # nothing but bindings
}


def mend(package: str) -> str:
    """Mend it if it is broken, uninstall it if that does not help; what was done, in words."""
    where = folder(package)
    if where is None:
        return "is not installed"
    broken = failure(package)
    if broken is None:
        return "imports as it is"
    done, how = "", MENDS[package]
    if how is not None:
        done = how(where)
        if failure(package) is None:
            return f"imports now: {done} ({broken})"
    uninstall(package)
    return f"uninstalled: {broken}"


if __name__ == "__main__":
    for name in MENDS:
        print(name, mend(name))
