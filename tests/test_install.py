"""What an install builds where something is missing, that it says so, and that the result imports on this torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import affinity_pool
from affinity_pool.provenance import versions

ROOT = Path(__file__).parents[1]
NVCC = shutil.which(os.environ.get("NVCC", "nvcc"))
LINKED = {folder: {path.name for path in (ROOT / folder).glob("*.py")} for folder in ("triton_kernels", "benchmarks")}
"""Folders beside the package that are parts of it, by links, and their modules."""
NO_COMPILER = "no-such-compiler"


def setup(tree: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", "-q", *command],
        cwd=tree,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, with its links."""
    tree = tmp_path_factory.mktemp("checkout") / "tree"
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    for part in ("affinity_pool", "csrc", "triton_kernels", "benchmarks", "tests"):
        shutil.copytree(ROOT / part, tree / part, ignore=ignore, symlinks=True)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    return tree


def build(tree: Path, command: str, folder: Path, **environment: str) -> tuple[str, Path]:
    """What building a distribution into a folder prints, and the file."""
    built = setup(tree, command, "-d", str(folder), **environment)
    assert built.returncode == 0, built.stderr[-4000:]
    (made,) = folder.glob("*.tar.gz" if command == "sdist" else "*.whl")
    return built.stdout, made


@pytest.fixture(scope="module")
def sdist(tree: Path) -> Path:
    """The source distribution, which others would build from."""
    return build(tree, "sdist", tree.parent, NVCC="none")[1]


def wheel(sdist: Path, folder: Path, **environment: str) -> tuple[str, Path]:
    """What building a wheel of the unpacked sdist prints, and the wheel."""
    shutil.unpack_archive(sdist, folder)
    (tree,) = folder.iterdir()
    return build(tree, "bdist_wheel", folder, **environment)


@pytest.fixture(scope="module")
def pure(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The same where there is no compiler."""
    return wheel(sdist, tmp_path_factory.mktemp("pure"), CXX=NO_COMPILER)


def unpacked(made: Path) -> Path:
    """The folder that a wheel is installed into."""
    site = made.with_suffix(".site")
    zipfile.ZipFile(made).extractall(site)
    return site


@pytest.fixture(params=["checkout", "editable", "wheel", "wheel of the sdist"])
def site(request: pytest.FixtureRequest, tree: Path, pure: tuple[str, Path], tmp_path: Path) -> Path:
    """Where the package is when it is run from a checkout, and installed in each way there is."""
    if request.param == "checkout":
        return tree
    if request.param == "wheel of the sdist":
        return unpacked(pure[1])
    command = "editable_wheel" if request.param == "editable" else "bdist_wheel"
    return unpacked(build(tree, command, tmp_path, CXX=NO_COMPILER)[1])


def backends(made: Path) -> dict[str, str]:
    """Name and line of each backend when the wheel is imported, and used, in a fresh interpreter."""
    site = unpacked(made)
    program = """
import torch, affinity_pool
assert affinity_pool.pool(torch.ones(3, 2)).counts.tolist() == [3]
print(affinity_pool.__file__)
print(*affinity_pool.backends(), sep="\\n")
"""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    run = subprocess.run([sys.executable, "-c", program], env=environment, cwd=site, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    where, *lines = run.stdout.splitlines()
    assert where.startswith(str(site))
    return {line.split()[0]: line for line in lines}


def test_the_sdist_holds_every_source_and_no_test(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    sources |= {f"affinity_pool/{folder}/{name}" for folder, names in LINKED.items() for name in names}
    sources |= {"CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md", "pyproject.toml", "setup.py"}
    assert sources <= names
    assert not [name for name in names if name.startswith("tests") or name.endswith((".so", ".o"))]
    assert sdist.stat().st_size < 2**20


def test_the_version_is_that_of_the_code(sdist: Path) -> None:
    assert sdist.name == f"affinity_pool-{affinity_pool.__version__}.tar.gz"
    assert versions()["affinity_pool"] == affinity_pool.__version__


def test_without_a_compiler_the_package_is_pure_python_and_says_so(pure: tuple[str, Path]) -> None:
    said, made = pure
    assert "installing without compiled kernels: no C++ compiler found; install g++ or set CXX" in said
    assert made.name.endswith("py3-none-any.whl")
    names = zipfile.ZipFile(made).namelist()
    assert "affinity_pool/pooling.py" in names
    benchmarks = [name.removeprefix("affinity_pool/benchmarks/") for name in names if "/benchmarks/" in name]
    assert set(benchmarks) == LINKED["benchmarks"], "and not what needs the repository, nor results"
    assert "affinity_pool/py.typed" in names  # or a type checker takes everything here for Any
    assert f"affinity_pool-{affinity_pool.__version__}.dist-info/METADATA" in names
    assert f"affinity_pool-{affinity_pool.__version__}.dist-info/licenses/LICENSE" in names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"affinity_pool"}, "and no tests, no csrc"
    assert not [name for name in names if name.endswith(".so")]
    assert " no " in backends(made)["cpu"]


def test_however_it_is_installed_the_package_has_what_it_links_to(site: Path) -> None:
    """Folders beside the package in a checkout, and inside it in a wheel."""
    program = """
import sys, site
site.addsitedir(sys.argv[1])  # reads the .pth file of an editable install
from importlib.util import find_spec
for name in sys.argv[2:]:
    print(find_spec(f"affinity_pool.{name}").origin)
"""
    others = Path(torch.__file__).parents[1]  # without its .pth files, one of which may be this package's own
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{site}{os.pathsep}{others}"}
    command = [sys.executable, "-S", "-c", program, str(site), *LINKED]
    run = subprocess.run(command, env=environment, cwd=site.parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    folders = [Path(line).parent for line in run.stdout.splitlines()]
    assert not [folder for folder in folders if folder.is_relative_to(ROOT)]
    assert {folder.name: {path.name for path in folder.glob("*.py")} for folder in folders} == LINKED


def test_without_nvcc_the_cpu_kernels_are_built(sdist: Path, tmp_path: Path) -> None:
    said, made = wheel(sdist, tmp_path, NVCC="none")
    assert "building the CPU kernels; no nvcc found, so no CUDA kernel" in said
    assert "cp310-abi3" in made.name
    found = backends(made)
    assert " yes " in found["cpu"]
    assert "not built: the install found no nvcc" in found["cuda"]


@pytest.mark.skipif(NVCC is None, reason="no nvcc here")
def test_with_nvcc_one_library_imports_on_any_torch(sdist: Path, tmp_path: Path) -> None:
    """On a torch without CUDA the kernel is there and not available; the listed architecture is the one built for."""
    said, made = wheel(sdist, tmp_path, TORCH_CUDA_ARCH_LIST="9.0+PTX")
    assert "building the CPU kernels and the CUDA kernel for sm_90 and PTX" in said
    found = backends(made)
    assert " yes " in found["cpu"]
    assert "built for sm_90 and PTX" in found["cuda"]


@pytest.mark.skipif(NVCC is None, reason="no nvcc here")
def test_architectures_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    built = setup(ROOT, "build_ext", "-b", str(tmp_path), "-t", str(tmp_path), TORCH_CUDA_ARCH_LIST="new")
    assert built.returncode != 0
    assert "TORCH_CUDA_ARCH_LIST must list capabilities, such as '8.0;9.0+PTX', got 'new'" in built.stderr


FAKE_NVCC = """#!/bin/sh
case "$*" in
  --version) echo "Cuda compilation tools, release {release}, V{release}.88" ;;
  --dryrun*) echo "#$ TOP={folder}" >&2 ;;
  *) echo "$@" >> {folder}/asked; exit 1 ;;
esac
"""


@pytest.mark.parametrize(("release", "expected"), [("12.8", False), ("13.0", True), ("13.3", True)])
def test_device_code_is_packed_for_drivers_that_its_cuda_asks_for_anyway(
    tmp_path: Path, release: str, expected: bool
) -> None:
    """CUDA 12.8 could pack it as well, and its code would no longer run on the older of the drivers it is made for."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("no C++ compiler here")
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(FAKE_NVCC.format(release=release, folder=tmp_path))
    nvcc.chmod(0o755)
    setup(ROOT, "build_ext", "-b", str(tmp_path / "lib"), "-t", str(tmp_path / "temp"), NVCC=str(nvcc))
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked
    assert {"--compress-mode=size" in line for line in asked} == {expected}


def test_what_is_no_python_is_installed_too(pure: tuple[str, Path]) -> None:
    site = unpacked(pure[1])
    program = "from affinity_pool.study.report.page import Page, html; print(len(html(Page('title', 'lead'))))"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    run = subprocess.run([sys.executable, "-c", program], env=environment, cwd=site, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 4000  # the stylesheet is in it
    assert (site / "affinity_pool" / "py.typed").is_file()
