"""What the compiler makes of the kernels, for GPUs that need not be here.

The host functions are called with the kernels replaced by recorders, and what they would have launched is compiled.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels are interpreted here, not compiled", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from affinity_pool.triton_kernels import (
    links,
    means,
    nearest_match,
    pool,
    pool_padded,
    pool_padded_to,
    pool_to,
    scan,
    select,
)

SM_80, SM_90 = GPUTarget("cuda", 80, 32), GPUTarget("cuda", 90, 32)
GFX_942 = GPUTarget("hip", "gfx942", 64)
POINTERS = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16",
    torch.int32: "*i32", torch.int64: "*i64", torch.uint8: "*u8", torch.bool: "*i1",
}  # fmt: skip


@dataclass
class Launch:
    kernel: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def source(self) -> ASTSource:
        """Its specialisation, as Triton would choose it: types as annotated, and what is divisible by 16."""
        signature, constants, attributes = {}, {}, {}
        for i, (parameter, value) in enumerate(zip(self.kernel.params, self.arguments, strict=True)):
            if parameter.is_constexpr or value is None:
                signature[parameter.name], constants[parameter.name] = "constexpr", value
                continue
            is_tensor = isinstance(value, torch.Tensor)
            signature[parameter.name] = POINTERS[value.dtype] if is_tensor else parameter.annotation_type
            number = value.data_ptr() if is_tensor else value
            if not parameter.do_not_specialize and isinstance(number, int) and number % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
        return ASTSource(fn=self.kernel, signature=signature, constexprs=constants, attrs=attributes)

    def compile(self, target: GPUTarget) -> Any:
        return triton.compile(self.source(), target=target, options=self.options)


class Recorder:
    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments, **options: self.launches.append(Launch(self.kernel, arguments, options))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Launch]]:
    """What is launched while the test runs; compiled things are kept for the session, and out of anyone's home."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "triton"))
    recorded: list[Launch] = []
    kernels = (
        (nearest_match, "nearest_match"), (links, "links"), (select, "select"),
        (scan, "maps_of_chunks"), (scan, "scan"), (means, "means"),
    )  # fmt: skip
    for module, name in kernels:
        monkeypatch.setattr(module, name, Recorder(getattr(module, name), recorded))
    return recorded


def rows(dtype: torch.dtype, shape: tuple[int, ...], offset: int = 0) -> torch.Tensor:
    size = torch.Size(shape).numel()
    return torch.zeros(size + 16, dtype=dtype)[offset : offset + size].view(shape)


def call_everything(dtype: torch.dtype, window: int, offset: int = 0) -> None:
    """Every op with none of its optional arguments and with all; in but one 16-bit dtype, for they are alike.

    And with more rows than one program scans.
    """
    packed, padded = rows(dtype, (48, 64), offset), rows(dtype, (3, 16, 64), offset)
    mask, lengths = torch.ones(3, 16, dtype=torch.bool), torch.tensor([16, 3, 0], dtype=torch.int32)
    pool(packed, None, None, 0.8, window)
    pool_to(packed, None, None, 0.5)
    if dtype == torch.float16:
        return
    cu_seqlens, counts = torch.tensor([0, 7, 48], dtype=torch.int32), torch.ones(3, dtype=torch.int32)
    pool(packed, cu_seqlens, mask.flatten(), 0.8, window)
    pool_to(packed, cu_seqlens, mask.flatten(), 0.5)
    for given in ({"rows": [3]}, {"rows": [3, 4]}, {"rows_tensor": counts[:2]}):
        pool_to(packed, cu_seqlens, None, 1.0, **given)
    pool_padded(padded, None, None, 0.8, window)
    pool_padded_to(padded, None, None, 0.5)
    for left in (False, True):
        pool_padded(padded, lengths, mask, 0.8, window, left)
        pool_padded_to(padded, lengths, mask, 0.5, left_padded=left)
        pool_padded_to(padded, lengths, None, 1.0, None, counts, left)
    padded = rows(dtype, (3, scan.ONE_CHUNK + 1, 64), offset)
    mask = torch.ones(padded.shape[:2], dtype=torch.bool)
    pool(padded[0], None, None, 0.8, window)
    pool_padded(padded, lengths, mask, 0.8, window, True)


def of(launches: list[Launch], kernel: str) -> Launch:
    """The first launch of a kernel."""
    return next(launch for launch in launches if launch.kernel.__name__ == kernel)


def compiled(launches: list[Launch], target: GPUTarget) -> list[Any]:
    different = {launch.source().hash(): launch for launch in launches}
    return [launch.compile(target) for launch in different.values()]


def stack_bytes(kernel: Any, tmp_path: Path) -> int:
    """Stack and local memory of a thread, as the assembler reports it."""
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    report = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    return sum(map(int, re.findall(r"(?:STACK|LOCAL):(\d+)", report)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("window", [1, 2, 3, 4, 8, 32])
def test_on_hopper_values_stay_in_registers(launches, tmp_path, dtype, window):
    """But for two at most, which the assembler parks outside of loops where that makes room for another block."""
    call_everything(dtype, window)
    for kernel in compiled(launches, SM_90):
        assert stack_bytes(kernel, tmp_path) <= 16, kernel.metadata


@pytest.mark.parametrize(("dtype", "window"), [(torch.bfloat16, 3), (torch.float32, 3), (torch.bfloat16, 32)])
def test_on_ampere_values_stay_in_registers(launches, tmp_path, dtype, window):
    call_everything(dtype, window)
    for kernel in compiled(launches, SM_80):
        assert stack_bytes(kernel, tmp_path) <= 16, kernel.metadata


@pytest.mark.parametrize(("dtype", "window"), [(torch.bfloat16, 3), (torch.float32, 3), (torch.bfloat16, 32)])
def test_on_amd_values_stay_in_registers(launches, dtype, window):
    if importlib.util.find_spec("triton.backends.amd") is None:
        pytest.skip("this triton has no AMD backend")
    call_everything(dtype, window)
    try:
        kernels = compiled(launches, GFX_942)
    except Exception as error:
        if "ld.lld not found" not in str(error):
            raise
        pytest.skip("this triton brings no linker for AMD GPUs")
    for kernel in kernels:
        spilled = re.findall(r"\.(vgpr_spill_count|private_segment_fixed_size):\s*(\d+)", kernel.asm["amdgcn"])
        assert set(spilled) == {("vgpr_spill_count", "0"), ("private_segment_fixed_size", "0")}, kernel.metadata


def test_misaligned_rows_compile_too(launches):
    call_everything(torch.bfloat16, 4, offset=1)
    assert compiled(launches, SM_90)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("offset", [0, 1])
def test_no_layout_decides_in_which_order_floats_are_added(launches, dtype, offset):
    """Of two there is but one sum, and what is fused is what the source says."""
    call_everything(dtype, 3, offset)
    kernel = of(launches, "nearest_match").compile(SM_90)
    sums = re.findall(r'"tt\.reduce".*?\}\) : \(tensor<([\dx]+)x([if]\d+)', kernel.asm["ttgir"], re.DOTALL)
    over_floats = [shape for shape, element in sums if element[0] == "f"]
    assert len(over_floats) == 7 * 8  # seven sums of 256 columns
    assert all(shape.endswith("x2") for shape in over_floats)
    assert "fma.rn.f32" in kernel.asm["ptx"]
    assert "sqrt.rn.f64" in kernel.asm["ptx"]
    assert not re.search(r"\.ftz|\.approx|fma\.rn\.f64", kernel.asm["ptx"])


def test_a_link_is_a_quotient_in_float64_of_the_same_sums(launches):
    call_everything(torch.bfloat16, 3)
    kernel = of(launches, "links").compile(SM_90)
    sums = re.findall(r'"tt\.reduce".*?\}\) : \(tensor<([\dx]+)xf32', kernel.asm["ttgir"], re.DOTALL)
    assert len(sums) == 3 * 8
    assert all(shape.endswith("x2") for shape in sums)
    assert {"sqrt.rn.f64", "div.rn.f64", "add.rn.f64"} <= set(re.findall(r"[\w.]+\.f64", kernel.asm["ptx"]))
    assert not re.search(r"\.ftz|\.approx|fma\.rn\.f64", kernel.asm["ptx"])


def test_rows_left_are_rounded_as_in_python(launches):
    """1e-9 is a float64, and taken from a product that has been rounded."""
    pool_to(rows(torch.float32, (48, 64)), None, None, 0.5)
    launch = of(launches, "select")
    assert launch.source().signature["share"] == "fp64"
    ptx = launch.compile(SM_90).asm["ptx"]
    assert set(re.findall(r"(?:add|sub|mul|fma)[\w.]*\.f64", ptx)) <= {"add.rn.f64", "sub.rn.f64", "mul.rn.f64"}
    assert re.search(r"0d[3B]E112E0BE826D695", ptx)


def test_a_mean_is_a_sum_times_a_rounded_reciprocal(launches):
    call_everything(torch.bfloat16, 3)
    ptx = of(launches, "means").compile(SM_90).asm["ptx"]
    assert re.search(r"(div|rcp)\.rn\.(ftz\.)?f32", ptx)  # a reciprocal of 2^31 is no subnormal yet
    assert not re.search(r"\.approx|(add|mul)\.ftz|fma\.", ptx)


def test_the_threshold_arrives_in_float64(launches):
    call_everything(torch.float32, 3)
    source = launches[0].source()
    assert source.signature["threshold"] == "fp64"
    assert ".param .f64 nearest_match_param" in launches[0].compile(SM_90).asm["ptx"]


def test_rows_are_loaded_16_bytes_at_a_time(launches):
    call_everything(torch.bfloat16, 3)
    ptx = launches[0].compile(SM_90).asm["ptx"]
    assert len(re.findall(r"ld\.global[.\w:]*\.v4\.b32", ptx)) == 8  # two chunks of a row and three lags


def test_few_things_make_a_kernel_compile_anew(launches):
    """Not the number of rows or sequences, nor their strides, nor a window beyond the lags of a pass, nor a promise."""
    call_everything(torch.bfloat16, 5)
    before = {launch.source().hash() for launch in launches}
    assert len(before) == 4 + 8 + 1 + 7 + 3 + 6
    mask = torch.ones(7, 33, dtype=torch.bool)
    for width, window in ((33, 6), (16, 7), (1, 8)):
        x, lengths = rows(torch.bfloat16, (7, width, 4096)), torch.zeros(7, dtype=torch.int32)
        pool(x[0], None, None, -0.5, window)
        pool_to(x[0], None, None, 1.0)
        for left in (False, True):
            pool_padded(x, lengths, mask[:, :width], 1.0, window, left)
            pool_padded_to(x, lengths, mask[:, :width], 0.1, left_padded=left)
            pool_padded_to(x, lengths, None, 1.0, [*range(7)], left_padded=left)
    x, mask = rows(torch.bfloat16, (2, 2**16, 16)), torch.ones(2, 2**16, dtype=torch.bool)
    pool(x[0], None, None, -0.5, 8)
    pool_padded(x, torch.zeros(2, dtype=torch.int32), mask, 1.0, 8, True)
    assert {launch.source().hash() for launch in launches} == before


@pytest.mark.parametrize(("length", "kernels"), [(2**14, 3), (2**14 + 1, 4)])
def test_a_scan_takes_two_launches_if_it_takes_long(launches, length, kernels):
    """And a promise one more, for there are links to be compared."""
    pool(rows(torch.float32, (length, 16)), None, None, 0.8, 3)
    assert len(launches) == kernels
    launches.clear()
    pool_padded(rows(torch.float32, (2, length, 16)), None, None, 0.8, 3)
    assert len(launches) == kernels
    launches.clear()
    pool_to(rows(torch.float32, (length, 16)), None, None, 0.5)
    assert len(launches) == kernels + 1
    launches.clear()
    pool_padded_to(rows(torch.float32, (2, length, 16)), None, None, 0.5)
    assert len(launches) == kernels + 1


@pytest.mark.usefixtures("launches")
def test_only_a_number_of_groups_that_no_one_promised_is_waited_for(monkeypatch):
    """It is the one number that a call asks the device for."""
    asked: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: asked.append(tensor) or 0)
    x, counts = rows(torch.float32, (48, 64)), torch.ones(1, dtype=torch.int32)
    cu_seqlens = torch.tensor([0, 7, 48], dtype=torch.int32)
    for given, places in (([5], 10), ([4, 30], 34)):
        values, _, _, sizes = pool_to(x, cu_seqlens, None, 1.0, given)
        assert len(values) == len(sizes) == places
    for promise in ((0.5,), (1.0, [5]), (1.0, None, counts)):
        pool_padded_to(x[None], counts, None, *promise)
    assert len(pool_to(x, None, None, 0.5)[0]) == 24
    assert not asked
    pool_to(x, cu_seqlens, None, 0.5)
    pool_to(x, None, None, 1.0, None, counts)
    assert len(asked) == 2
