"""Builds affinity_pool/_C.abi3.so, one library on torch's stable ABI that no Python version owns, or installs without.

What is built depends on what is here: g++ (or $CXX) for the CPU kernels, nvcc (or $NVCC) besides for the CUDA kernel.
Without a compiler the package is pure Python; `affinity_pool.backends()` tells what is there. The outcome is one line
of the install's output. The CUDA kernel needs nvcc alone: it sees no torch, and the library loads into a torch without
CUDA. NVCC=none leaves it out.
"""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import setup

STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # torch 2.10, the oldest that the library loads into
NO_FALSE_ALARMS = "-Wno-maybe-uninitialized"  # raised inside gcc 12's own AVX-512 headers
ARCHITECTURES = "8.0;9.0+PTX"  # unless $TORCH_CUDA_ARCH_LIST says otherwise

ROOT = Path(__file__).parent
CUDA = ROOT / "csrc" / "cuda"


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++").split()[0])


def nvcc() -> str | None:
    if "NVCC" in os.environ:
        return shutil.which(os.environ["NVCC"])
    return shutil.which("nvcc") or shutil.which("nvcc", path=f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin")


def release_of_nvcc() -> tuple[int, int] | None:
    """``(13, 0)``, or None of one that does not say."""
    said = subprocess.run([nvcc(), "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", said)
    return (int(release[1]), int(release[2])) if release else None


def toolkit() -> Path:
    """Where nvcc's headers and libraries are; nvcc itself may be a script elsewhere."""
    plan = subprocess.run([nvcc(), "--dryrun", "-c", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    return Path(re.search(r"^#\$ TOP=(.*)$", plan, re.MULTILINE)[1]).resolve()


def architectures() -> list[tuple[str, bool]]:
    """``[("80", False), ("90", True)]``: what machine code is made for, and whether PTX for later ones comes along."""
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)
    found = re.findall(r"(\d+)\.(\d+)(a?)(\+PTX)?", listed)
    if not found:
        raise SystemExit(f"TORCH_CUDA_ARCH_LIST must list capabilities, such as {ARCHITECTURES!r}, got {listed!r}")
    return [(major + minor + suffix, bool(ptx)) for major, minor, suffix, ptx in found]


def compression() -> list[str]:
    """Of the device code: a third of the size, where the driver that unpacks it is needed in any case.

    What CUDA 13 makes runs on drivers from 580 on, which know this format. CUDA 12.8 has the option too, but there it
    is said to shut out drivers that run its code otherwise.
    """
    return ["--compress-mode=size"] if (release_of_nvcc() or (0, 0)) >= (13, 0) else []


def compile_cuda(folder: Path) -> list[str]:
    """Objects of the files that nvcc compiles, side by side."""
    targets = []
    for number, ptx in architectures():
        codes = [f"sm_{number}"] + ([f"compute_{number}"] if ptx else [])
        targets += ["-gencode", f"arch=compute_{number},code=[{','.join(codes)}]"]
    flags = ["-std=c++20", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", *compression(), *targets]
    folder.mkdir(parents=True, exist_ok=True)

    def one(source: Path) -> str:
        target = folder / f"{source.stem}.o"
        subprocess.run([nvcc(), *flags, "-c", source, "-o", target], check=True)
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(one, sorted(CUDA.glob("*.cu"))))


def extension() -> dict:
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        return without("torch is not importable here; install it first and use pip install --no-build-isolation")
    if compiler() is None:
        return without("no C++ compiler found; install g++ or set CXX")
    with_cuda = nvcc() is not None
    sources = sorted(p for p in (ROOT / "csrc").rglob("*.cpp") if with_cuda or p.parent != CUDA)
    module = CppExtension(
        "affinity_pool._C",
        [str(p.relative_to(ROOT)) for p in sources],
        py_limited_api=True,
        extra_compile_args=["-std=c++20", "-O3", "-g0", "-fvisibility=hidden", STABLE_ABI, NO_FALSE_ALARMS],
    )
    if with_cuda:
        names = ", ".join(f"sm_{number}{' and PTX' if ptx else ''}" for number, ptx in architectures())
        home = toolkit()
        module.include_dirs.append(str(home / "include"))
        module.library_dirs += [str(home / name) for name in ("lib64", "lib") if (home / name).is_dir()]
        module.libraries += ["cudart_static", "dl", "rt", "pthread"]
        module.extra_compile_args.append(f'-DAP_CUDA_ARCHITECTURES="{names}"')
        module.extra_link_args += ["-Wl,--no-as-needed", "-ltorch"]  # brings torch's CUDA half, where it has one
        print(f"affinity_pool: building the CPU kernels and the CUDA kernel for {names}")
    else:
        print("affinity_pool: building the CPU kernels; no nvcc found, so no CUDA kernel")

    class Build(BuildExtension):
        def build_extensions(self) -> None:
            if with_cuda:
                module.extra_objects = compile_cuda(Path(self.build_temp) / "cuda")
            super().build_extensions()

    return {
        "ext_modules": [module],
        "cmdclass": {"build_ext": Build},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


def without(reason: str) -> dict:
    print(f"affinity_pool: installing without compiled kernels: {reason}")
    return {}


if __name__ == "__main__":  # hub/build.py takes what is above for a build of its own
    setup(**extension())
