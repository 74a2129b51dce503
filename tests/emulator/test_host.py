"""The host code for CUDA, executed: checks, outputs, strides, workspaces and launches of csrc/cuda/affinity_pool.cpp.

It is built as the CPU's implementation of the ops, with the emulator where a GPU would be, and put in the place of the
compiled library in a copy of the package. There the op's own tests run on it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import affinity_pool
import emulator

pytestmark = pytest.mark.skipif(emulator.missing() is not None, reason=str(emulator.missing()))
TESTS = Path(__file__).parents[1]
# What a GPU promises as well: all but refusals of what only a look at the data shows.
CLAIMS = ("test_rule.py", "test_shapes.py", "test_pool_to.py", "test_torch.py")
REFUSALS = "test_errors.py::test_the_op_itself_says_what_is_wrong"

CAPTURE = """
import ctypes, torch, affinity_pool
cuda = ctypes.CDLL(str(affinity_pool.backends.__globals__["LIBRARY"]))
x = torch.randn(3, 40, 64, generator=torch.Generator().manual_seed(0)).repeat_interleave(2, 1)
plain = affinity_pool.pool_padded(x, left_padded=True)

def captured(calls):
    cuda.emulate_capture(True)
    for _ in range(calls):
        result = affinity_pool.pool_padded(x, left_padded=True)
        assert all(torch.equal(a, b) for a, b in zip(plain, result))
    cuda.emulate_capture(False)
"""

OWNED = """
before = cuda.emulated_allocations(), cuda.emulated_memsets()
captured(2)
assert cuda.emulated_memset_nodes() == 0
assert (cuda.emulated_allocations(), cuda.emulated_memsets()) == (before[0] + 2, before[1] + 2)
captured(1)
assert cuda.emulated_allocations() == before[0] + 3  # the first two are the graph's as long as it lives
cuda.emulate_the_end_of_the_graph()
captured(3)
assert cuda.emulated_allocations() == before[0] + 3
assert cuda.emulated_memsets() == before[1] + 6  # each time zeroed, whatever the graph before has left in it
cuda.emulate_capture(True)
try:
    affinity_pool.pool(x[0])
except RuntimeError as error:
    print(str(error).splitlines()[0])
cuda.emulate_capture(False)
assert affinity_pool.pool(x[0]).counts.tolist() == [2] * 40
"""

NOT_OWNED = """
cuda.emulate_a_driver_without_user_objects(True)
captured(2)
assert cuda.emulated_memset_nodes() == 2
assert cuda.emulated_last_error() == 0
cuda.emulate_a_driver_without_user_objects(False)
allocations = cuda.emulated_allocations()
captured(1)
assert cuda.emulated_memset_nodes() == 2
assert cuda.emulated_allocations() == allocations  # what the driver did not take was not lost
"""

FAILING = """
for error, words in ((719, "launching the kernel: unspecified launch failure"), (209, "which this GPU does not run")):
    cuda.emulate_a_failing_launch(error)
    try:
        affinity_pool.pool_padded(x)
    except RuntimeError as raised:
        assert words in str(raised), raised
    else:
        raise AssertionError("nothing was raised")
    assert cuda.emulated_last_error() == 0
    assert torch.equal(affinity_pool.pool_padded(x, left_padded=True).values, plain.values)
"""

PROMISES = """
x = torch.randn(3, 40, 64, generator=torch.Generator().manual_seed(0)).repeat_interleave(2, 1)
lengths = torch.tensor([70, 1, 80], dtype=torch.int32)
calls = [
    lambda: affinity_pool.pool_padded_to(x, 0.5, lengths, left_padded=True),
    lambda: affinity_pool.pool_padded_to(x, 40),
    lambda: affinity_pool.pool_padded_to(x, [40, 40, 40]),
    lambda: affinity_pool.pool_padded_to(x, torch.tensor([40, 1, 7], dtype=torch.int32), lengths),
    lambda: affinity_pool.pool_to(x[0], 40),
    lambda: affinity_pool.pool_to(x[0], 0.5),
    lambda: affinity_pool.pool_to(x.flatten(0, 1), 17, torch.tensor([0, 80, 160, 240], dtype=torch.int32)),
]
cuda.emulate_a_wait_is_an_error(True)
plain = [call() for call in calls]
plain.append(affinity_pool.pool_to(x.flatten(0, 1), [3, 40, 80], torch.tensor([0, 80, 160, 240], dtype=torch.int32)))
cuda.emulate_capture(True)
for call, result in zip(calls, plain):
    assert all(torch.equal(a, b) for a, b in zip(call(), result))
for refused in (
    lambda: affinity_pool.pool_padded_to(x, [40, 41, 42]),
    lambda: affinity_pool.pool_to(x[0], 0.5, torch.tensor([0, 80], dtype=torch.int32)),
):
    try:
        refused()
    except RuntimeError as error:
        print(str(error).splitlines()[0])
    else:
        raise AssertionError("nothing was raised")
cuda.emulate_capture(False)
try:
    affinity_pool.pool_to(x[0], 0.5, torch.tensor([0, 80], dtype=torch.int32))
except RuntimeError as error:
    print(str(error).splitlines()[0])
cuda.emulate_a_wait_is_an_error(False)
waited = affinity_pool.pool_to(x[0], 0.5, torch.tensor([0, 80], dtype=torch.int32))
assert waited.counts.tolist() == plain[5].counts.tolist()
"""

TAGS = """
first, second = torch.randn(2, 5000, 1).sign()
expected = affinity_pool.pool(second)
affinity_pool.pool(first)
for _ in range(65535 - 1):
    torch.ops.affinity_pool.pool_padded(torch.ones(1, 1, 1), None, None, 0.8, 1)
found = affinity_pool.pool(second)  # what the first has left has the tag of this launch, if it is still there
assert torch.equal(found.segment_ids, expected.segment_ids)
"""

STREAM = """
import torch, affinity_pool
from affinity_pool import streaming
streaming.serving = lambda device: "cuda"
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    for rows in (1, 2, 7, 8, 9, 16, 63, 64, 65, 72, 130, 512, 513, 600):
        x = 1 + 0.3 * torch.randn(rows, 24).to(dtype)
        whole = affinity_pool.pool(x, threshold=-1.0)
        pooler = affinity_pool.AffinityPooler(threshold=-1.0)
        for chunk in x.split(37):
            assert pooler.step(chunk)[1].numel() == 0
        values, counts = pooler.flush()
        assert counts.tolist() == [rows]
        assert torch.equal(values, whole.values), (dtype, rows)
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to import the package from."""
    folder = tmp_path_factory.mktemp("host")
    source = Path(affinity_pool.__file__).parent
    shutil.copytree(source, folder / "affinity_pool", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy(emulator.build("host"), folder / "affinity_pool")
    assert "built for an emulator" in run(folder, "-c", "import affinity_pool as a; print(*a.backends())")
    return folder


def run(package: Path, *command: str) -> str:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment = {**kept, "PYTHONPATH": str(package), "HYPOTHESIS_PROFILE": kept.get("HYPOTHESIS_PROFILE", "brief")}
    done = subprocess.run([sys.executable, *command], env=environment, cwd=TESTS, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


def test_the_op_keeps_its_contract(package: Path):
    files = [f"op/{name}" for name in (*CLAIMS, REFUSALS)]
    others = "not (reference or emulator or triton or cuda)"
    run(package, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-k", others, *files)


def test_a_captured_call_has_a_workspace_that_the_graph_owns(package: Path):
    """And `pool`, which has to wait for the number of groups, says that it cannot be captured."""
    refused = run(package, "-c", CAPTURE + OWNED)
    assert "pool cannot be captured in a CUDA graph, for its shapes depend on data: call pool_padded" in refused


def test_promised_rows_need_no_wait_and_can_be_captured(package: Path):
    """But for ints that differ, which a replay would look for on the host, and numbers that only data tell."""
    differ, unknown, waited = run(package, "-c", CAPTURE + PROMISES).splitlines()
    assert "rows that differ cannot be captured in a CUDA graph" in differ
    assert "pool_to cannot be captured in a CUDA graph, for its shapes depend on data: call pool_padded_to" in unknown
    assert "waiting for the kernel" in waited


def test_a_driver_that_lets_graphs_own_nothing_gets_a_memset(package: Path):
    run(package, "-c", CAPTURE + NOT_OWNED)


def test_a_failed_launch_is_told_once(package: Path):
    run(package, "-c", CAPTURE + FAILING)


def test_a_tag_comes_round_to_memory_that_was_zeroed_meanwhile(package: Path):
    """Else a word of 65,535 launches ago would be taken for one of today's."""
    run(package, "-c", CAPTURE + TAGS)


def test_a_stream_is_summed_in_the_kernel_s_order(package: Path):
    run(package, "-c", STREAM)
