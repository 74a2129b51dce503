"""Results and programs that hold the ops go to files and come back, in this process and in one that knows only them."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import affinity_pool
from affinity_pool import Pooled, PooledPadded

from .cases import same_bits, spell

NAMES = {"pool": Pooled, "pool_padded": PooledPadded, "pool_to": Pooled, "pool_padded_to": PooledPadded}
every_op = pytest.mark.parametrize("op", NAMES)


class Module(torch.nn.Module):
    """Returns a named tuple inside a container, as a model would."""

    def __init__(self, op: str) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: torch.Tensor) -> dict[str, Pooled | PooledPadded]:
        options = {"keep": 0.5} if self.op.endswith("_to") else {"threshold": 0.9}
        return {"pooled": getattr(affinity_pool, self.op)(x, **options)}


def rows(op: str, text: str) -> torch.Tensor:
    x = spell(text, 8)
    return torch.stack([x, x.flip(0)]) if "padded" in op else x


def exported(op: str, strict: bool) -> torch.export.ExportedProgram:
    length = {1 if "padded" in op else 0: torch.export.Dim("length")}
    return torch.export.export(Module(op), (rows(op, "AABBC"),), dynamic_shapes={"x": length}, strict=strict)


@every_op
@pytest.mark.parametrize("strict", [True, False])
def test_a_saved_program_gives_back_named_tuples(op, strict, tmp_path):
    torch.export.save(exported(op, strict), tmp_path / "program.pt2")
    x = rows(op, "AAABBBCCC")
    result = torch.export.load(tmp_path / "program.pt2").module()(x)["pooled"]
    assert isinstance(result, NAMES[op])
    assert same_bits(result, Module(op)(x)["pooled"])


def test_a_saved_program_runs_in_a_process_of_its_own(tmp_path):
    torch.export.save(exported("pool", strict=False), tmp_path / "program.pt2")
    program = """
import sys, affinity_pool, torch
pooled = torch.export.load(sys.argv[1]).module()(torch.eye(5, 8))["pooled"]
print(type(pooled).__name__, pooled.counts.tolist())
"""
    command = [sys.executable, "-c", program, tmp_path / "program.pt2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(affinity_pool.__file__).parents[1])}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.stdout == "Pooled [1, 1, 1, 1, 1]\n", run.stderr


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="AOTInductor needs a C++ compiler")
@pytest.mark.parametrize("op", ["pool_padded", "pool_padded_to"])
def test_a_program_compiled_ahead_of_time_runs(op, tmp_path):
    path = torch._inductor.aoti_compile_and_package(
        exported(op, strict=False), package_path=str(tmp_path / "program.pt2")
    )
    x = rows(op, "AAABBBCCC")
    result = torch._inductor.aoti_load_package(path)(x)["pooled"]
    assert isinstance(result, PooledPadded)
    assert same_bits(result, Module(op)(x)["pooled"])


def through_a_file(result: Pooled | PooledPadded, path: Path) -> object:
    torch.save(result, path)
    return torch.load(path)  # weights_only, torch's default


@every_op
@pytest.mark.parametrize(
    "copied",
    [lambda r, _: copy.deepcopy(r), lambda r, _: pickle.loads(pickle.dumps(r)), through_a_file],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_results_can_be_copied_and_kept(op, copied: Callable[..., object], tmp_path):
    result = Module(op)(rows(op, "AABBC"))["pooled"]
    there = copied(result, tmp_path / "result.pt")
    assert isinstance(there, NAMES[op])
    assert same_bits(there, result)


@every_op
def test_a_tree_of_results_is_mapped_by_field(op):
    result = Module(op)(rows(op, "AABBC"))
    shapes = torch.utils._pytree.tree_map(lambda tensor: tensor.shape, result)["pooled"]
    assert isinstance(shapes, NAMES[op])
    assert shapes.segment_ids == result["pooled"].segment_ids.shape
