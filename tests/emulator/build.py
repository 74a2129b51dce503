"""Builds the kernel of csrc/cuda with the CPU's compiler: a library for ctypes, and fuzz programs with sanitizers.

Everything is written to a folder by ninja, which compiles only what has changed. No CUDA, no Python headers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CXX = os.environ.get("CXX", "g++")

# Contraction off: fmaf is written where it is meant, and nowhere else may a multiplication and an addition be one.
FLAGS = f"-std=c++20 -O2 -g1 -fPIC -fvisibility=hidden -ffp-contract=off -Wall -Wextra -Wno-unknown-pragmas -I{HERE}"
FMA = {"x86_64": "-march=x86-64-v3"}.get(os.uname().machine, "")
FORMATS = ("Float32", "Float16", "BFloat16")
VARIANTS = {
    "library": "",
    "asan": "-DEMULATOR_ASAN -fsanitize=address,undefined -fno-sanitize-recover=undefined",
    "tsan": "-DEMULATOR_TSAN -fsanitize=thread",
}


def build(variant: str, folder: Path = ROOT / "build" / "emulator", kernel: Path = ROOT / "csrc") -> Path:
    """The shared library (``library``) or a fuzz program (``asan``, ``tsan``) of the kernel in ``kernel``/cuda."""
    target = folder / variant / ("emulator.so" if variant == "library" else "fuzz")
    target.parent.mkdir(parents=True, exist_ok=True)
    (target.parent / "build.ninja").write_text(rules(variant, target, kernel))
    ninja = shutil.which("ninja", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if ninja is None:
        raise RuntimeError("ninja is not installed: pip install ninja")
    run = subprocess.run([ninja, "-C", str(target.parent)], capture_output=True, text=True)
    if run.returncode != 0:
        raise RuntimeError(f"the emulator does not build:\n{run.stdout[-4000:]}{run.stderr[-2000:]}")
    return target


def rules(variant: str, target: Path, kernel: Path) -> str:
    sanitizers = VARIANTS[variant]
    flags = f"{FLAGS} {FMA} {sanitizers} -I{kernel}"
    lines = [
        f"rule compile\n  command = {CXX} {flags} $more -MMD -MF $out.d -c $in -o $out\n  depfile = $out.d",
        f"rule link\n  command = {CXX} {sanitizers} $more $in -o $out",
    ]
    objects = []
    # A thread sanitizer must not watch the scheduler, which tells it what it needs to know.
    unwatched = "-fno-sanitize=thread" if variant == "tsan" else ""
    sources = [("emulator", unwatched), ("library", "")] + ([] if variant == "library" else [("fuzz", "")])
    for name, more in sources:
        lines.append(f"build {name}.o: compile {HERE / name}.cpp\n  more = {more}")
        objects.append(f"{name}.o")
    for form in FORMATS:
        for aligned in ("true", "false"):
            name = f"{form}_{aligned}.o"
            lines.append(f"build {name}: compile {HERE}/kernel.cpp\n  more = -DFORMAT={form} -DALIGNED={aligned}")
            objects.append(name)
    lines.append(f"build {target.name}: link {' '.join(objects)}\n  more = {'-shared' if variant == 'library' else ''}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for name in sys.argv[1:] or ["library"]:
        print(build(name))
