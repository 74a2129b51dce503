"""The op as a kernel for the Kernels Hub: what its builder is told, what it is given, and what its loader loads."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

try:
    import tomllib
except ImportError:  # Python 3.10
    from setuptools.compat.py310 import tomllib

ROOT = Path(__file__).parents[2]
HUB = ROOT / "hub"


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


hub, setup = module(HUB / "build.py"), module(ROOT / "setup.py")


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    return tomllib.loads((HUB / "build.toml").read_text())


def lay_out(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HUB / "build.py"), str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Laid out, nothing built."""
    tree = tmp_path_factory.mktemp("hub") / "tree"
    laid = lay_out(tree, "--backend", "none")
    assert laid.returncode == 0, laid.stderr
    return tree


def test_the_builder_is_told_of_every_source(told: dict[str, Any]) -> None:
    """It compiles what is named, and in its sandbox has no header that is not."""
    kernels = told["kernel"]
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    assert set(kernels["affinity_pool_cuda"]["src"]) == files
    assert set(kernels["affinity_pool_cpu"]["src"]) == {file for file in files if "/cuda/" not in file}
    assert told["torch"]["src"] == [path.relative_to(HUB).as_posix() for path in HUB.glob("torch-ext/*.cpp")]


@pytest.mark.skipif(setup.compiler() is None, reason="no C++ compiler here")
def test_the_builder_compiles_as_an_install_does(told: dict[str, Any]) -> None:
    cpu, cuda = told["kernel"]["affinity_pool_cpu"], told["kernel"]["affinity_pool_cuda"]
    flags = setup.extension()["ext_modules"][0].extra_compile_args
    chosen_by_the_builder = {"-g0", setup.STABLE_ABI, setup.NO_FALSE_ALARMS}
    only_with_nvcc = {flag for flag in flags if flag.startswith("-DAP_CUDA")}
    assert {*flags} - chosen_by_the_builder - only_with_nvcc == {*cpu["cxx-flags"]} - {hub.NAMESPACE}
    major, minor = (int(part) for part in told["torch"]["stable-abi"]["cpu"].split("."))
    assert told["torch"]["stable-abi"]["cuda"] == told["torch"]["stable-abi"]["cpu"]
    assert f"-DTORCH_TARGET_VERSION=0x{(major << 56) + (minor << 48):016x}" == setup.STABLE_ABI
    assert f"torch-stable-abi{major}{minor}" == hub.VARIANT
    assert ";".join(cuda["cuda-capabilities"]) == setup.ARCHITECTURES
    names = re.sub(r"(\d)\.(\d)", r"sm_\1\2", ", ".join(cuda["cuda-capabilities"])).replace("+", " and ")
    assert {*cuda["cxx-flags"]} - {*cpu["cxx-flags"]} == {rf"-DAP_CUDA_ARCHITECTURES=\"{names}\""}


def test_the_kernel_is_made_of_the_package_and_imports_torch_alone(tree: Path) -> None:
    package = tree / "torch-ext" / "affinity_pool"
    files = {path.relative_to(package).as_posix(): path for path in package.rglob("*.py")}
    assert {*files} > {"pooling.py", "triton_kernels/scan.py"}
    assert "_ops.py" not in files, "the builder makes one"
    for name, path in files.items():
        original = HUB / "torch-ext" / "affinity_pool" if name == "__init__.py" else ROOT / "affinity_pool"
        assert path.read_bytes() == (original / name).read_bytes()
        allowed = {*sys.stdlib_module_names, "torch", *(["triton"] if name.startswith("triton_kernels/") else [])}
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert (node.module or "").partition(".")[0] in allowed, name
            elif isinstance(node, ast.Import):
                assert {alias.name.partition(".")[0] for alias in node.names} <= allowed, name


def test_another_source_has_another_namespace(tree: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tree, tmp_path / "copy")
    assert hub.identity(copy) == hub.identity(tree)
    with (copy / "csrc" / "algebra.h").open("a") as file:
        file.write("// changed\n")
    assert hub.identity(copy) != hub.identity(tree)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "precious").touch()
    refused = lay_out(tmp_path, "--backend", "none")
    assert refused.returncode != 0
    assert refused.stderr.endswith("is not a folder that was laid out here before: give it, or an empty one\n")
    assert [path.name for path in tmp_path.rglob("*")] == ["csrc", "precious"]


def test_the_builders_own_parser_takes_what_it_is_told(tree: Path) -> None:
    build = pytest.importorskip("kernels._rust", reason="kernels 0.17 is not installed", exc_type=ImportError).Build
    assert [str(backend).lower() for backend in build.open(tree).general.backends] == ["cpu", "cuda"]
    (tree / "build.toml").write_text((HUB / "build.toml").read_text().replace("backends =", "backend ="))
    try:
        with pytest.raises(ValueError, match="backend"):
            build.open(tree)
    finally:
        shutil.copy(HUB / "build.toml", tree)


BESIDE_THE_PACKAGE = """
import sys
from pathlib import Path
import kernels, torch
import affinity_pool

kernel = kernels.get_local_kernel(Path(sys.argv[1]), backend="cpu")
ops = sys.modules[f"{kernel.__name__}._ops"].ops
assert ops.name == kernel.__name__ != "affinity_pool"
assert ops.pool.default is not torch.ops.affinity_pool.pool.default
of_kernel, of_package = ({b.name: b.detail for b in ap.backends() if b.available} for ap in (kernel, affinity_pool))
assert "cpu" in of_kernel
exact = {"rtol": 0, "atol": 0} if of_kernel["cpu"] == of_package.get("cpu") else {}  # the package may not be built

torch.manual_seed(0)
x = torch.randn(40, 16).repeat_interleave(2, 0)
batch, lengths = x.view(2, 40, 16), torch.tensor([40, 7], dtype=torch.int32)
cu, mask = torch.tensor([0, 30, 80], dtype=torch.int32), torch.rand(80) < 0.8
for call in (
    lambda ap: ap.pool(x, cu, mergeable=mask),
    lambda ap: ap.pool_padded(batch, lengths, left_padded=True),
    lambda ap: ap.pool_to(x, 0.3, cu),
    lambda ap: ap.pool_padded_to(batch, 5, lengths),
):
    for a, b, c in zip(*(call(ap) for ap in (kernel, affinity_pool, kernel.reference))):
        torch.testing.assert_close(a, b, **exact)
        torch.testing.assert_close(a, c)  # whose sums are in torch's order
pooler = kernel.AffinityPooler()
streamed = [closed.values for closed in (pooler.step(x[:33]), pooler.step(x[33:]), pooler.flush())]
assert torch.equal(torch.cat(streamed), kernel.pool(x).values)
assert kernel.rows_left(750, 0.5) == 375

gradients = []
for ap in (kernel, affinity_pool):
    leaf = x.clone().requires_grad_()
    compiled = torch.compile(lambda rows: ap.pool(rows).values, fullgraph=True, backend="aot_eager")
    for function in (compiled, lambda rows: ap.pool(rows).values):
        gradients += torch.autograd.grad(function(leaf).square().sum(), leaf)
assert gradients[0].abs().sum() > 0
for other in gradients:
    torch.testing.assert_close(gradients[0], other, **exact)
torch.library.opcheck(ops.pool.default, (leaf, cu, mask, 0.8, 3))

with kernel.use("reference"):  # of this kernel alone
    for ap in (kernel, affinity_pool):
        try:
            ap.pool(x, cu + 1)
        except Exception as error:
            print(type(error).__name__, error)
try:
    kernel.pool(x, cu + 1)
except RuntimeError as error:  # in C++
    print(error)
"""


@pytest.mark.skipif(setup.compiler() is None, reason="no C++ compiler here")
@pytest.mark.skipif(not hub.HEADERS.is_file(), reason="no Python headers here")
def test_the_loader_loads_it_beside_the_package(tree: Path) -> None:
    pytest.importorskip("kernels", "0.17", reason="kernels 0.17 is not installed", exc_type=ImportError)
    built = lay_out(tree, "--backend", "cpu")
    assert built.returncode == 0, built.stderr
    (variant,) = (tree / "build").iterdir()
    assert variant.name == f"{hub.VARIANT}-cpu-{os.uname().machine}-linux"
    run = subprocess.run(
        [sys.executable, "-c", BESIDE_THE_PACKAGE, str(tree)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    of_the_reference, of_the_package, of_the_kernel = run.stdout.splitlines()
    assert of_the_reference == "ValueError cu_seqlens must start at 0, got 1"
    assert of_the_package.startswith(("RuntimeError ", "ValueError "))  # as it has been built or not
    assert of_the_kernel.startswith("pool_packed, ")
    assert of_the_kernel.endswith(", cu_seqlens must start at 0, got 1")
