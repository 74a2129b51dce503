"""Lays out the op as a kernel for the Kernels Hub, and builds as much of it as there are compilers for: `make hub`.

The folder, build/hub unless another is given, becomes the source tree that the hub's builder wants: what is here,
csrc/, and in torch-ext/ the package's own modules. In its build/ are the variants that `kernels.get_local_kernel`
loads, one for the CPU and, with nvcc, one for CUDA, made by setup.py's recipe. These are for trying it out: what is
published has to be built by the builder, against an older glibc, from the tree that is laid out (docs/hub.md).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from setuptools import Distribution

try:
    import tomllib
except ImportError:  # Python 3.10
    from setuptools.compat.py310 import tomllib

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PACKAGE = ROOT / "affinity_pool"
MODULES = ("backends", "checks", "derivatives", "ops", "pooling", "reference", "results", "streaming")
"""Of the package: the op, which needs torch alone. Of the package's _ops.py each build has one of its own."""

NAMESPACE = "-DAFFINITY_POOL_NAMESPACE=TORCH_EXTENSION_NAME"  # of the ops: the library's own name
VARIANT = "torch-stable-abi210"
HEADERS = Path(sysconfig.get_path("include")) / "Python.h"
"""A build is imported as a Python module, which the package's library is not, and so takes Python's headers."""

OPS = '''"""The namespace of this build's ops. Importing the library registers them."""

import torch

from . import {name} as _

ops = torch.ops.{name}


def add_op_namespace_prefix(op_name: str) -> str:
    """The name by which the dispatcher knows an op."""
    return f"{name}::{{op_name}}"
'''


def lay_out(folder: Path) -> None:
    """The source tree of the kernel, in place of one that is there; builds beside it stay."""
    if (folder / "csrc").exists() != (folder / "flake.nix").exists():  # this project itself, for one: it has csrc alone
        raise SystemExit(f"{folder} is not a folder that was laid out here before: give it, or an empty one")
    for part in ("csrc", "torch-ext"):
        shutil.rmtree(folder / part, ignore_errors=True)
    ignore = shutil.ignore_patterns("__pycache__", "build.py")
    shutil.copytree(HERE, folder, ignore=ignore, dirs_exist_ok=True)
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    shutil.copy(ROOT / "LICENSE", folder)
    package = folder / "torch-ext" / "affinity_pool"
    for module in MODULES:
        shutil.copy(PACKAGE / f"{module}.py", package)
    shutil.copytree(PACKAGE / "triton_kernels", package / "triton_kernels", ignore=ignore)


def identity(folder: Path) -> str:
    """Short, and another for another source: two builds in one process must not share a namespace."""
    digest = hashlib.sha256()
    for path in sorted(path for part in ("csrc", "torch-ext") for path in (folder / part).rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:7]


def recipe() -> ModuleType:
    """setup.py, which knows how the library is compiled."""
    spec = importlib.util.spec_from_file_location("recipe", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(folder: Path, backend: str) -> Path:
    """One variant of a tree that is laid out; returns its folder."""
    name = f"_affinity_pool_{backend}_{identity(folder)}"
    setup = recipe()
    if backend == "cpu":
        os.environ["NVCC"] = "none"
    elif setup.nvcc() is None:
        raise SystemExit("the variant for CUDA needs nvcc on the PATH, or CUDA_HOME set")
    if not HEADERS.is_file():
        raise SystemExit(f"a build for the hub takes Python's headers, and {HEADERS} is missing: install python3-dev")
    options: dict[str, Any] = setup.extension()
    if not options:
        raise SystemExit("a C++ compiler and torch are needed")
    (extension,) = options["ext_modules"]
    extension.name = name
    extension.sources.append(str(folder / "torch-ext" / "torch_binding.cpp"))
    extension.extra_compile_args.append(NAMESPACE)
    made = folder / "_build" / backend
    command = Distribution({"name": name, **options}).get_command_obj("build_ext")
    command.build_lib, command.build_temp = str(made), str(made / "objects")
    command.ensure_finalized()
    command.run()

    variant = folder / "build" / f"{VARIANT}-{platform_of(backend, setup)}"
    shutil.rmtree(variant, ignore_errors=True)
    shutil.copytree(folder / "torch-ext" / "affinity_pool", variant)
    (library,) = made.glob(f"{name}*.so")
    shutil.copy(library, variant / f"{name}.abi3.so")
    (variant / "_ops.py").write_text(OPS.format(name=name))
    archs = [re.sub(r"(\da?)$", r".\1", number) + "+PTX" * ptx for number, ptx in setup.architectures()]
    (variant / "metadata.json").write_text(json.dumps(metadata(name, backend, archs), indent=2) + "\n")
    return variant


def platform_of(backend: str, setup: ModuleType) -> str:
    """As ``cu130-x86_64-linux``."""
    compute = "cpu" if backend == "cpu" else "cu{}{}".format(*setup.release_of_nvcc())
    return f"{compute}-{platform.machine()}-{platform.system().lower()}"


def metadata(name: str, backend: str, archs: list[str]) -> dict[str, Any]:
    general = tomllib.loads((HERE / "build.toml").read_text())["general"]
    return {
        "name": general["name"],
        "id": name,
        "version": general["version"],
        "license": general["license"],
        "python-depends": [],
        "kernel-depends": [],
        "backend": {"type": backend, **({"archs": archs} if backend == "cuda" else {})},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Lay out the op for the Kernels Hub and build it.")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "build" / "hub")
    parser.add_argument("--backend", choices=["cpu", "cuda", "none"], help="one variant, or the source tree alone")
    chosen = parser.parse_args()
    folder = chosen.folder.resolve()
    lay_out(folder)
    if chosen.backend is not None:
        backends = [chosen.backend] if chosen.backend != "none" else []
    else:
        backends = ["cuda", "cpu"] if recipe().nvcc() else ["cpu"]  # in this order: without nvcc is for good
    os.chdir(ROOT)  # setup.py's sources are named from here
    for backend in backends:
        print(build(folder, backend))
    print(folder)


if __name__ == "__main__":
    main()
