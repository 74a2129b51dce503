"""What the compiler makes of the CUDA kernels: registers, spills, instructions, how many a tile takes. No GPU needed.

    python -m affinity_pool.benchmarks.without_gpu.cuda_static [--out FILE.json]

prints the tables and, if told where, keeps them with their provenance.

Needs nvcc; instructions are read with the cuobjdump of nvcc's toolkit or, where that has none, of the triton package.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from .cuda_work import WINDOWS, Work, work
from .sass import Code

CUDA = Path(__file__).resolve().parents[2] / "csrc" / "cuda"
ARCHITECTURES = ("sm_80", "sm_90")
NVCC = shutil.which(os.environ.get("NVCC", "nvcc"))


@dataclass(frozen=True)
class Kernel:
    """One entry point on one architecture."""

    architecture: str
    kernel: str
    """``pool``, or ``link`` and ``select``, which go before it if a number of rows is promised."""
    format: str
    window: str
    aligned: bool
    registers: int
    stack: int
    """Bytes of a thread's stack; what is spilled goes there."""
    spilled: int
    """Bytes of spill stores and loads."""
    barriers: int
    static_shared: int
    instructions: int
    copies_to_shared: int
    """LDGSTS of 16 bytes: rows on their way to shared memory, around the registers."""
    wide_loads: int
    """LDG of 16 bytes: rows that were not kept, and sums of other tiles."""
    wide_stores: int
    """STG of 16 bytes: means and sums."""
    local: int
    """LDL and STL: accesses to the stack."""
    releases: int
    """MEMBAR: what a block wrote is there before its flag is."""
    acquires: int
    """CCTL.IVALL: what a flag announces is not read from an older line of L1."""
    products: int
    """HMMA: 16 x 8 dot products over 16 features."""


def cuobjdump() -> str | None:
    """The first that is found, or None."""
    found = shutil.which("cuobjdump")
    triton = find_spec("triton")
    if found is None and triton is not None and triton.origin is not None:
        bundled = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        found = str(bundled) if bundled.exists() else None
    return found


def missing() -> str | None:
    """Why nothing can be read here, or None."""
    if NVCC is None:
        return "no nvcc here"
    return None if cuobjdump() else "no cuobjdump here: it comes with CUDA's toolkit, and with the triton package"


@dataclass(frozen=True)
class Compiled:
    """All entry points for one architecture."""

    kernels: list[Kernel]
    work: list[Work]
    """Of a tile of 16-bit rows."""


def read(architecture: str) -> Compiled:
    """Compile every .cu file for one architecture and read what came out."""
    kernels, work_of_tile = [], []
    for source in sorted(CUDA.glob("*.cu")):
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder) / "kernel.cubin"
            flags = ["-std=c++20", "-O3", f"-arch={architecture}", "-Xptxas", "-v", "-cubin", "-o", str(cubin)]
            report = run([str(NVCC), *flags, str(source)])
            code = run([str(cuobjdump()), "-sass", str(cubin)])
        sass = dict(re.findall(r"Function : (\S+)\n(.*?)(?=\n\s*Function : |\Z)", code, re.DOTALL))
        for name, facts in re.findall(r"Compiling entry function '(\S+)'(.*?Used [^\n]*)", report, re.DOTALL):
            kernel = describe(architecture, name, facts, sass[name])
            kernels.append(kernel)
            if kernel.kernel == "pool" and kernel.aligned and kernel.format == "bfloat16":
                work_of_tile = [work(architecture, Code(sass[name]), window) for window in WINDOWS]
    return Compiled(kernels, work_of_tile)


def describe(architecture: str, name: str, facts: str, sass: str) -> Kernel:
    arguments = re.search(r"(Float32|BFloat16|Float16)ELb([01])E(?:Li(\d))?", name)
    named = re.search(r"affinity_pool_(link|select)", name)
    assert arguments is not None or named is not None, name
    kernel = named[1] if named else "pool"
    widest = {"pool": "1-32"}.get(kernel, "1")

    def number(pattern: str) -> int:
        return sum(int(n) for n in re.findall(pattern, facts))

    opcodes = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", sass, re.MULTILINE)
    return Kernel(
        architecture,
        kernel,
        arguments[1].lower() if arguments else "any",
        {"2": "1", "4": "2-32"}.get(arguments[3], widest) if arguments else widest,
        arguments is None or arguments[2] == "1",
        registers=number(r"Used (\d+) registers"),
        stack=number(r"(\d+) bytes stack frame"),
        spilled=number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        barriers=number(r"used (\d+) barriers"),
        static_shared=number(r"(\d+) bytes smem"),
        instructions=len([o for o in opcodes if o != "NOP"]),
        copies_to_shared=count(opcodes, "LDGSTS", "128"),
        wide_loads=count(opcodes, "LDG", "128"),
        wide_stores=count(opcodes, "STG", "128"),
        local=count(opcodes, "LDL") + count(opcodes, "STL"),
        releases=count(opcodes, "MEMBAR", "GPU"),
        acquires=count(opcodes, "CCTL", "IVALL"),
        products=count(opcodes, "HMMA"),
    )


def count(opcodes: list[str], name: str, modifier: str | None = None) -> int:
    return sum(o.split(".")[0] == name and (modifier is None or modifier in o.split(".")) for o in opcodes)


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def table(records: Sequence[Kernel] | Sequence[Work]) -> str:
    rows = [asdict(record) for record in records]
    lines = [[name.replace("_", " ") for name in rows[0]], ["---"] * len(rows[0])]
    lines += [[str(value) for value in row.values()] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if why := missing():
        raise SystemExit(why)
    compiled = [read(architecture) for architecture in ARCHITECTURES]
    kernels = [kernel for one in compiled for kernel in one.kernels]
    work_of_tile = [part for one in compiled for part in one.work]
    print(table(kernels), table(work_of_tile), sep="\n\n")
    if options.out is not None:
        from affinity_pool.provenance import provenance

        nvcc = run([str(NVCC), "--version"]).strip().splitlines()[-1]
        results = {
            "provenance": {**provenance(), "nvcc": nvcc},
            "results": [asdict(kernel) for kernel in kernels],
            "warp_instructions_a_tile": [asdict(part) for part in work_of_tile],
        }
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
