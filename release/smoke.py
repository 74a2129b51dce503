"""Run by the Python of an environment that has nothing but the wheel and what it asks for: does the op do what it says?

Prints what was found as JSON, or ends with the error. There is no compiler here and no checkout; pip alone was used.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", message="Failed to initialize NumPy")  # which nothing here needs
import torch  # noqa: E402

import affinity_pool as ap  # noqa: E402


def main() -> None:
    compilers = [name for name in ("cc", "c++", "gcc", "g++", "clang", "nvcc") if shutil.which(name)]
    require(not compilers, f"there is {compilers}, and this is to show that none is needed")
    require("site-packages" in Path(ap.__file__).parts, f"{ap.__file__} is not of the wheel")
    backends = {backend.name: backend for backend in ap.backends()}
    require(backends["cpu"].available, f"no CPU kernels: {backends['cpu'].detail}")
    require(backends["cuda"].available or "sees no NVIDIA GPU" in backends["cuda"].detail, backends["cuda"].detail)
    for device in ["cpu", *(["cuda"] if backends["cuda"].available else [])]:
        values(device)
        derivatives(device)
    refusals()
    commands()
    facts = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "affinity_pool": ap.__version__,
        "glibc": platform.libc_ver()[1],
        "backends": {b.name: ("" if b.available else "not available: ") + b.detail for b in backends.values()},
    }
    print(json.dumps(facts))


def values(device: str) -> None:
    """Every op against the paper's loop: two sequences, and rows that may not merge.

    Neighbours are as alike as the threshold asks, give or take, so that threshold and window decide.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 64, generator=generator)[torch.arange(120) // 3]
    x = (rows + 0.5 * torch.randn(120, 64, generator=generator)).to(device)
    cu_seqlens = torch.tensor([0, 50, 120], dtype=torch.int32, device=device)
    mergeable = (torch.arange(120) % 40 != 7).to(device)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        given = (x.to(dtype), cu_seqlens)
        same(ap.pool(*given, mergeable=mergeable), ap.reference.pool(*given, mergeable=mergeable))
        same(
            ap.pool_to(given[0], 0.5, cu_seqlens, mergeable=mergeable),
            ap.reference.pool_to(given[0], 0.5, cu_seqlens, mergeable=mergeable),
        )
    padded = ap.pool_padded(x.view(2, 60, 64))
    for row, groups in enumerate(padded.lengths.tolist()):
        alone = ap.reference.pool(x[60 * row : 60 * (row + 1)])
        require(groups == len(alone.counts) < 60, f"row {row} of a batch has {groups} groups")
        require(torch.allclose(padded.values[row, :groups], alone.values, atol=1e-6), "a batch and its rows differ")


def derivatives(device: str) -> None:
    """A mean hands its gradient out in equal shares."""
    x = torch.ones(4, 8, device=device, requires_grad=True)
    ap.pool(x).values.sum().backward()
    require(x.grad is not None and x.grad.eq(0.25).all().item(), f"the gradient of a mean of 4 is {x.grad}")


def refusals() -> None:
    """What is raised in C++ arrives as torch's errors do, though the library is linked for an older system."""
    try:
        torch.ops.affinity_pool.pool(torch.ones(3, 2), None, None, float("nan"), 3)
    except RuntimeError as error:
        require("threshold must be a number, got NaN" in str(error), str(error))
    else:
        raise SystemExit("a threshold of NaN was not refused")
    try:
        ap.pool(torch.ones(2, 3, 4))
    except ValueError as error:
        require("x must have shape [N, D], got [2, 3, 4]" in str(error), str(error))
    else:
        raise SystemExit("three dimensions were not refused")


def commands() -> None:
    """What needs torch alone runs, and what needs more says so."""
    suite = ["overhead", "--rounds", "3", "--seconds", "0.01"]
    timed = python("-W", "ignore", "-m", "affinity_pool.benchmarks", *suite)
    require(timed.returncode == 0 and "torch.add" in timed.stdout, timed.stderr)
    env = python("-m", "affinity_pool.cli", "env")
    require(env.returncode == 1 and "pip install 'affinity_pool[cli]'" in env.stderr, env.stdout + env.stderr)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=dict(os.environ))


def same(found: ap.Pooled, expected: ap.Pooled) -> None:
    require(torch.equal(found.counts, expected.counts), f"groups of {found.counts}, expected {expected.counts}")
    tolerance = 1e-6 if found.values.dtype == torch.float32 else 1e-2
    require(torch.allclose(found.values, expected.values, rtol=tolerance, atol=tolerance), "the means differ")


def require(holds: object, otherwise: str) -> None:
    if not holds:
        raise SystemExit(otherwise)


if __name__ == "__main__":
    main()
