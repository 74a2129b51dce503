"""Builds affinity_pool/_C.abi3.so, one library on torch's stable ABI that no Python version owns, or installs without.

What is built depends on what is here: g++ (or $CXX) for the CPU kernels. Without a compiler the package is pure Python
and runs the reference; `affinity_pool.backends()` says so. The outcome is one line of the install's output.
"""

import os
import shutil
from pathlib import Path

from setuptools import setup

STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # torch 2.10, the oldest that the library loads into
NO_FALSE_ALARMS = "-Wno-maybe-uninitialized"  # raised inside gcc 12's own AVX-512 headers

ROOT = Path(__file__).parent


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++").split()[0])


def extension() -> dict:
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        return without("torch is not importable here; install it first and use pip install --no-build-isolation")
    if compiler() is None:
        return without("no C++ compiler found; install g++ or set CXX")
    print("affinity_pool: building the CPU kernels")
    sources = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.cpp"))
    module = CppExtension(
        "affinity_pool._C",
        sources,
        py_limited_api=True,
        extra_compile_args=["-std=c++20", "-O3", "-g0", "-fvisibility=hidden", STABLE_ABI, NO_FALSE_ALARMS],
    )
    return {
        "ext_modules": [module],
        "cmdclass": {"build_ext": BuildExtension},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


def without(reason: str) -> dict:
    print(f"affinity_pool: installing without compiled kernels: {reason}")
    return {}


setup(**extension())
