"""The package imports whatever is missing, and says what that is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import affinity_pool

module = sys.modules["affinity_pool.backends"]  # the package has a function of that name
PACKAGE = Path(affinity_pool.__file__).parent
INSTRUCTION_SETS = ("portable", "avx2", "avx512", "avx512_bf16")

# The fallback is the same op: every result, gradients and opcheck included, without the compiled library.
WITHOUT_LIBRARY = """
import torch, affinity_pool as ap
from affinity_pool import reference

cpu = next(b for b in ap.backends() if b.name == "cpu")
print(cpu.available, cpu.detail)
x = torch.randn(9, 4).repeat_interleave(2, 0)
mask, cu = torch.rand(18) < 0.8, torch.tensor([0, 5, 5, 18], dtype=torch.int32)
for op, judge, args, options in [
    (ap.pool, reference.pool, (x, cu), dict(mergeable=mask)),
    (ap.pool_padded, reference.pool_padded, (x.view(2, 9, 4), None), dict(left_padded=True)),
    (ap.pool_to, reference.pool_to, (x, 0.5, cu), dict(mergeable=mask)),
    (ap.pool_to, reference.pool_to, (x, [2, 0, 9], cu), dict()),
    (ap.pool_padded_to, reference.pool_padded_to, (x.view(2, 9, 4), 4), dict(left_padded=True)),
]:
    for a, b in zip(op(*args, **options), judge(*args, **options)):
        assert torch.equal(a, b)
leaf = x.clone().requires_grad_()
ap.pool(leaf).values.sum().backward()
assert torch.equal(leaf.grad.sum(0).round(), torch.full((4,), float(ap.pool(x).counts.shape[0])))
torch.library.opcheck(torch.ops.affinity_pool.pool.default, (leaf, cu, mask, 0.8, 3))
pooler = ap.AffinityPooler()
streamed = [pooler.step(row)[0] for row in x.split(1)] + [pooler.flush()[0]]
assert torch.allclose(torch.cat(streamed), ap.pool(x).values)
try:
    ap.pool(x, cu + 1)
except ValueError as error:
    print(error)
"""

WITHOUT_TRANSFORMERS = """
import sys
sys.modules["transformers"] = None
import torch, affinity_pool
print(affinity_pool.pool(torch.ones(3, 2)).counts.tolist())
try:
    affinity_pool.patch
except ImportError as error:
    print(error)
"""


def python(program: str, path: Path | None = None) -> str:
    """Output of a fresh interpreter, with another copy of the package if its parent is given."""
    path = path or PACKAGE.parent
    environment = {**os.environ, "PYTHONPATH": str(path)}
    run = subprocess.run([sys.executable, "-c", program], env=environment, cwd=path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def without_library(tmp_path: Path) -> Path:
    shutil.copytree(PACKAGE, tmp_path / "affinity_pool", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tmp_path


def test_backends_are_named_and_explained():
    backends = {backend.name: backend for backend in affinity_pool.backends()}
    assert list(backends)[-1] == "reference"
    assert backends["reference"].available
    assert backends["reference"].devices == "any"
    assert backends["cpu"].devices == "cpu"
    assert all(backend.detail for backend in backends.values())


def implementation_in_use() -> str:
    """They word a refusal in different exceptions."""
    try:
        affinity_pool.pool(torch.ones(2, 2), torch.tensor([0, 1], dtype=torch.int32))
    except ValueError:
        return "reference"
    except RuntimeError:
        return "cpu"
    raise AssertionError("cu_seqlens that end early must be refused")


cpu_kernels = pytest.mark.skipif(
    not next(b for b in affinity_pool.backends() if b.name == "cpu").available, reason="the CPU kernels are not built"
)


@cpu_kernels
def test_use_chooses_and_restores():
    assert implementation_in_use() == "cpu"
    with affinity_pool.use("reference"):
        assert implementation_in_use() == "reference"
        with affinity_pool.use("cpu"):
            assert implementation_in_use() == "cpu"
        assert implementation_in_use() == "reference"
    assert implementation_in_use() == "cpu"


@cpu_kernels
def test_use_needs_no_with():
    affinity_pool.use("reference")
    assert implementation_in_use() == "reference"
    affinity_pool.use("auto")
    assert implementation_in_use() == "cpu"


@cpu_kernels
def test_use_restores_after_an_error():
    with pytest.raises(KeyError), affinity_pool.use("reference"):
        raise KeyError
    assert implementation_in_use() == "cpu"


@cpu_kernels
def test_compiled_code_follows_the_choice():
    compiled = torch.compile(lambda x: affinity_pool.pool(x).values, backend="aot_eager", fullgraph=True)
    x = torch.randn(6, 3)
    expected = compiled(x)
    with affinity_pool.use("reference"):
        assert torch.equal(compiled(x), expected)


def test_use_refuses_in_words():
    with pytest.raises(ValueError, match="name must be auto, cuda, triton, cpu, reference; got 'tpu'"):
        affinity_pool.use("tpu")
    for backend in affinity_pool.backends():
        if not backend.available:
            with pytest.raises(ValueError, match=f"^{backend.name} is not available: "):
                affinity_pool.use(backend.name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_its_backends_say_so():
    backends = {backend.name: backend for backend in affinity_pool.backends()}
    assert not backends["cuda"].available
    assert not backends["triton"].available
    assert backends["triton"].detail == "no CUDA or ROCm device here"
    assert backends["cuda"].detail.startswith(("not built: ", "built for sm_"))


@pytest.mark.parametrize(
    ("built", "gpu", "runs"),
    [
        ("sm_80, sm_90 and PTX", (7, 5), False),
        ("sm_80, sm_90 and PTX", (8, 0), True),
        ("sm_80, sm_90 and PTX", (8, 9), True),
        ("sm_80, sm_90 and PTX", (9, 0), True),
        ("sm_80, sm_90 and PTX", (12, 0), True),
        ("sm_89, sm_90", (8, 6), False),
        ("sm_89, sm_90", (10, 0), False),
        ("sm_80 and PTX", (9, 0), True),
        ("sm_90a", (9, 0), True),
        ("sm_90a", (9, 1), False),
        ("sm_120", (12, 1), True),
    ],
)
def test_a_gpu_needs_code_that_it_runs(monkeypatch: pytest.MonkeyPatch, built: str, gpu: tuple[int, int], runs: bool):
    """And one that runs none is served by another backend, from the moment torch knows of it."""
    cuda = pretend(monkeypatch, built, gpu, driver=13)
    assert cuda[0] == runs
    assert runs or cuda[2] == f"built for {built}, which no GPU here runs: GPU 0 (sm_{gpu[0]}{gpu[1]})"
    served_as_told(monkeypatch, runs)


@pytest.mark.parametrize(("driver", "runs"), [(12, False), (13, True), (14, True)])
def test_a_driver_older_than_the_code_s_cuda_runs_none_of_it(monkeypatch: pytest.MonkeyPatch, driver: int, runs: bool):
    """A wheel built by CUDA 13, and a torch and a driver of CUDA 12: each is fine, together they are not."""
    cuda = pretend(monkeypatch, "sm_80, sm_90 and PTX", (9, 0), driver)
    assert cuda[0] == runs
    assert runs or cuda[2] == (
        "built for sm_80, sm_90 and PTX by CUDA 13, which the driver here, of CUDA 12, does not run: "
        "update it, or build with an nvcc of 12"
    )
    served_as_told(monkeypatch, runs)


def pretend(monkeypatch: pytest.MonkeyPatch, built: str, gpu: tuple[int, int], driver: int) -> tuple[bool, str, str]:
    """What is told of the library where there is such a GPU and such a driver."""
    monkeypatch.setattr(module, "_architectures", built)
    monkeypatch.setattr(module, "_release", 13)
    monkeypatch.setattr(module, "_library", object())
    monkeypatch.setattr(torch.version, "cuda", f"{driver}.0")
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: driver * 1000 + 40, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: gpu)
    monkeypatch.setattr(module.triton_kernels, "missing", lambda: "no triton here")
    return module._cuda()


def served_as_told(monkeypatch: pytest.MonkeyPatch, runs: bool) -> None:
    try:
        module._replace("auto")  # as a library that was built for them does on import
        module._look_at_the_gpus()
        assert module.serving(torch.device("cuda")) == ("cuda" if runs else "reference")
        replaced = {f"affinity_pool/{name}/CUDA" for name in module.ops.REFERENCE}
        assert module._replacements._op_impls == (set() if runs else replaced)
    finally:
        monkeypatch.undo()
        module._gpus_are_older = False
        module._replace("auto")


def test_a_backend_prints_as_a_line():
    lines = [str(backend) for backend in affinity_pool.backends()]
    assert all("\n" not in line for line in lines)
    assert lines[-1].split()[:3] == ["reference", "yes", "any"]
    assert lines[-1].endswith("serves every device without a kernel of its own")


@pytest.mark.each_instruction_set
def test_the_cpu_backend_names_its_instruction_set():
    cpu = next(backend for backend in affinity_pool.backends() if backend.name == "cpu")
    if not cpu.available:
        pytest.skip(cpu.detail)
    kind, used = cpu.detail.rsplit(" ", 1)
    assert kind == "C++ kernels, using"
    assert used in INSTRUCTION_SETS
    widest = os.environ.get("AFFINITY_POOL_CPU")
    assert widest is None or INSTRUCTION_SETS.index(used) <= INSTRUCTION_SETS.index(widest)


def test_without_the_compiled_library_the_reference_serves(tmp_path: Path):
    built, refused = python(WITHOUT_LIBRARY, without_library(tmp_path)).splitlines()
    assert built.startswith("False not built: ")
    assert "g++" in built
    assert refused == "cu_seqlens must start at 0, got 1"


def test_a_library_that_does_not_load_is_reported_not_raised(tmp_path: Path):
    (without_library(tmp_path) / "affinity_pool" / "_C.abi3.so").write_bytes(b"no library")
    program = "import affinity_pool; print(*affinity_pool.backends(), sep='\\n')"
    output = python(program, tmp_path)
    assert "cpu        no   cpu   built, but does not load: " in output


def test_without_transformers_the_op_works_and_patch_names_the_extra():
    pooled, refused = python(WITHOUT_TRANSFORMERS).splitlines()
    assert pooled == "[3]"
    assert refused.startswith("affinity_pool.patch needs transformers")
    assert refused.endswith("pip install 'affinity_pool[models]'")


def test_the_import_does_not_load_the_models_the_study_or_triton():
    program = "import sys, affinity_pool; print([m for m in {'transformers', 'typer', 'triton'} if m in sys.modules])"
    assert python(program) == "[]\n"


def test_everything_promised_is_there():
    assert set(affinity_pool.__all__) <= {*dir(affinity_pool), "Site", "patch", "unpatch"}
