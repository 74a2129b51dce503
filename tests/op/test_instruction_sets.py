"""Every CPU instruction set keeps the contract: the claims marked so run again, in a process for each narrower set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import affinity_pool

from .test_backends import INSTRUCTION_SETS

HERE = Path(__file__).parent


def widest() -> str:
    """The set that this process, and so every other test of the suite, is using."""
    return next(backend for backend in affinity_pool.backends() if backend.name == "cpu").detail.rsplit(" ", 1)[-1]


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_the_contract_holds_for(name: str):
    used = widest()
    if used not in INSTRUCTION_SETS:
        pytest.skip("the CPU kernels are not built")
    if INSTRUCTION_SETS.index(name) >= INSTRUCTION_SETS.index(used):
        pytest.skip(f"the rest of the suite runs on {used}, the widest here")
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")},
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "AFFINITY_POOL_CPU": name,
        "HYPOTHESIS_PROFILE": os.environ.get("HYPOTHESIS_PROFILE", "brief"),
    }
    others = "not (reference or emulator)"
    command = [sys.executable, "-m", "pytest", "-x", "-m", "each_instruction_set", "-k", others]
    run = subprocess.run(
        [*command, "-p", "no:cacheprovider", str(HERE)], env=environment, cwd=HERE, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]
