"""What nvcc makes of the CUDA kernel keeps its budget: nothing spills, rows travel 16 bytes at a time, and a tile takes
no more instructions than its bytes leave time for."""

from __future__ import annotations

import pytest

from affinity_pool.benchmarks.without_gpu import cuda_static
from affinity_pool.benchmarks.without_gpu.cuda_static import ARCHITECTURES, Compiled, Kernel

WHY_NOT = cuda_static.missing()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def compiled(request: pytest.FixtureRequest) -> Compiled:
    return cuda_static.read(request.param)


@pytest.fixture
def kernels(compiled: Compiled) -> list[Kernel]:
    return compiled.kernels


def test_one_kernel_a_format_and_alignment_and_two_of_float32(kernels: list[Kernel]):
    found = {(k.kernel, k.format, k.window, k.aligned) for k in kernels}
    windows = {"bfloat16": ["1-32"], "float16": ["1-32"], "float32": ["1", "2-32"]}
    pooling = {("pool", name, w, aligned) for name, all_ in windows.items() for w in all_ for aligned in (False, True)}
    linking = {("link", name, "1", aligned) for name in windows for aligned in (False, True)}
    assert found == {*pooling, *linking, ("select", "any", "1", True)}
    assert len(kernels) == len(found)


def test_nothing_spills(kernels: list[Kernel]):
    assert [(k.spilled, k.stack, k.local) for k in kernels] == [(0, 0, 0)] * len(kernels)


def test_four_blocks_find_their_registers_on_a_multiprocessor(kernels: list[Kernel]):
    assert max(k.registers for k in kernels) * 128 * 4 <= 65536


def test_shared_memory_is_the_launch_s_to_size(kernels: list[Kernel]):
    """What a block needs beside its rows is held below 4 KB by the source itself."""
    assert {k.static_shared for k in kernels} == {0}


def test_rows_travel_16_bytes_at_a_time(kernels: list[Kernel]):
    for kernel in kernels:
        if kernel.kernel == "select":
            assert kernel.copies_to_shared == kernel.wide_loads == 0, "it reads no rows"
        elif kernel.aligned:
            assert kernel.copies_to_shared >= 4, "the loop over rows is unrolled: four copies in flight a turn"
            if kernel.kernel == "pool":
                assert kernel.wide_loads > 8
                assert kernel.wide_stores >= 4
        else:
            assert kernel.copies_to_shared == 0


def test_matrix_instructions_multiply_rows_of_16_bits_and_no_others(kernels: list[Kernel]):
    """Of float32 they would take 10 bits."""
    for kernel in kernels:
        assert (kernel.products > 0) == (kernel.format in ("bfloat16", "float16"))


def test_flags_are_released_and_acquired(kernels: list[Kernel]):
    """One flag a block, raised behind a fence where a sum was handed on; one place that waits for flags."""
    assert {k.releases for k in kernels if k.kernel == "pool"} == {1}
    assert min(k.acquires for k in kernels if k.kernel == "pool") >= 1
    assert {k.releases for k in kernels if k.kernel != "pool"} == {0}, "a launch's end is their barrier"


def test_a_tile_takes_no_more_instructions_than_its_bytes_leave_time_for(compiled: Compiled):
    """16 thousand at window 3; a lag beyond that costs less than a third of the 3 thousand that it takes without
    matrix instructions."""
    totals = {part.window: part.total for part in compiled.work}
    assert totals[3] <= 16_000
    assert totals[8] - totals[3] <= 5 * 1000
    assert totals[32] - totals[3] <= 29 * 1000
    for part in compiled.work:
        assert min(part.copies, part.dots, part.decisions, part.composition, part.means, part.rest) > 0
