"""Builds csrc/cuda with the CPU's compiler: the kernel alone, its fuzz programs with sanitizers, and the ops around it.

Everything is written to a folder by ninja, which compiles only what has changed. No CUDA, no Python headers.
"""

from __future__ import annotations

import fcntl
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
    "host": "",
}
HOST = "-DTORCH_TARGET_VERSION=0x020a000000000000 '-DAP_CUDA_ARCHITECTURES=\"an emulator\"'"


def build(variant: str, folder: Path = ROOT / "build" / "emulator", kernel: Path = ROOT / "csrc") -> Path:
    """Of the kernel in ``kernel``/cuda: a library for ctypes (``library``) or torch (``host``), or a fuzz program."""
    target = folder / variant / {"library": "emulator.so", "host": "_C.abi3.so"}.get(variant, "fuzz")
    target.parent.mkdir(parents=True, exist_ok=True)
    ninja = shutil.which("ninja", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if ninja is None:
        raise RuntimeError("ninja is not installed: pip install ninja")
    with (target.parent / "lock").open("w") as lock:  # tests that run at the same time share the folder
        fcntl.flock(lock, fcntl.LOCK_EX)
        (target.parent / "build.ninja").write_text(rules(variant, target, kernel))
        run = subprocess.run([ninja, "-C", str(target.parent)], capture_output=True, text=True)
    if run.returncode != 0:
        raise RuntimeError(f"the emulator does not build:\n{run.stdout[-4000:]}{run.stderr[-2000:]}")
    return target


def rules(variant: str, target: Path, kernel: Path) -> str:
    sanitizers, more_to_link = VARIANTS[variant], "-shared" if target.suffix == ".so" else ""
    # A thread sanitizer must not watch the machine, which tells it what it needs to know.
    unwatched = "-fno-sanitize=thread" if variant == "tsan" else ""
    sources = {name: (HERE / f"{name}.cpp", unwatched) for name in ("emulator", "fiber", "matrix")}
    sources["launch"] = (HERE / "launch.cpp", "")
    for form in FORMATS:
        for aligned in ("true", "false"):
            sources[f"{form}_{aligned}"] = (HERE / "kernel.cpp", f"-DFORMAT={form} -DALIGNED={aligned}")
    if variant == "host":
        from torch.utils.cpp_extension import include_paths, library_paths

        headers = " ".join([f"-I{HERE / 'host'}", *(f"-isystem {path}" for path in include_paths())])
        sources["runtime"] = (HERE / "host" / "runtime.cpp", headers)
        sources["ops"] = (HERE / "host" / "ops.cpp", f"{headers} {HOST}")
        more_to_link += "".join(f" -L{path} -Wl,-rpath,{path}" for path in library_paths()) + " -ltorch_cpu -lc10"
    else:
        sources["library"] = (HERE / "library.cpp", "")
    if target.name == "fuzz":
        sources["fuzz"] = (HERE / "fuzz.cpp", "")
    objects = " ".join(f"{name}.o" for name in sources)
    compile_one = f"{CXX} {FLAGS} {FMA} {sanitizers} -I{kernel} $more -MMD -MF $out.d -c $in -o $out"
    lines = [f"rule compile\n  command = {compile_one}\n  depfile = $out.d"]
    lines += [f"build {name}.o: compile {source}\n  more = {more}" for name, (source, more) in sources.items()]
    lines += [f"rule link\n  command = {CXX} {sanitizers} $in $more -o $out"]
    lines += [f"build {target.name}: link {objects}\n  more = {more_to_link}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for name in sys.argv[1:] or ["library"]:
        print(build(name))
