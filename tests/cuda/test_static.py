"""What nvcc makes of the CUDA kernel keeps its budget: nothing spills, rows travel 16 bytes at a time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import cuda_static
from cuda_static import ARCHITECTURES, Kernel

WHY_NOT = cuda_static.missing()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def kernels(request: pytest.FixtureRequest) -> list[Kernel]:
    return cuda_static.read(request.param)


def test_one_kernel_a_format_window_and_alignment(kernels: list[Kernel]):
    assert len({(k.format, k.window, k.aligned) for k in kernels}) == len(kernels) == 12


def test_nothing_spills(kernels: list[Kernel]):
    assert [(k.spilled, k.stack, k.local) for k in kernels] == [(0, 0, 0)] * len(kernels)


def test_four_blocks_find_their_registers_on_a_multiprocessor(kernels: list[Kernel]):
    assert max(k.registers for k in kernels) * 128 * 4 <= 65536


def test_shared_memory_is_the_launch_s_to_size(kernels: list[Kernel]):
    """What a block needs beside its rows is held below 4 KB by the source itself."""
    assert {k.static_shared for k in kernels} == {0}


def test_rows_travel_16_bytes_at_a_time(kernels: list[Kernel]):
    for kernel in kernels:
        if kernel.aligned:
            assert kernel.copies_to_shared >= 4, "the loop over a row is unrolled: four copies in flight a turn"
            assert kernel.wide_loads > 8
            assert kernel.wide_stores >= 4
        else:
            assert kernel.copies_to_shared == 0


def test_flags_are_released_and_acquired(kernels: list[Kernel]):
    """One flag a block, raised behind a fence; one place that waits for flags."""
    assert {k.releases for k in kernels} == {1}
    assert min(k.acquires for k in kernels) >= 1
