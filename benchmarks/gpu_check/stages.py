"""What gpu_check does on a GPU, cheapest truth first: each stage a row of parts, each part with its limit in seconds.

A part returns what it found in a line, or raises a PartError. All parts of a stage are done, though one may fail: the
others have something to tell. There are six stages and no more, for each is a tar in a folder of at most eight files.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from .shell import ROOT, FailedError, IncompleteError, Shell, SkippedError, ended, tail

SANITIZE, PLANTED_FAULT = "benchmarks/gpu_check/sanitize.py", "benchmarks/gpu_check/planted_fault.py"
LIBRARY = ROOT / "affinity_pool" / "_C.abi3.so"
WANTING = re.compile(r"\bneeds\b|not installed|too old")  # reasons to skip a test that another machine would not have
BRING = (
    "bring along: `pip download -d wheels {0}` where there is a network, here `python -m pip install "
    "--no-index --no-deps --target site wheels/*.whl` and PYTHONPATH=site"
)


# setuptools before 77 cannot read this project's pyproject.toml, of which building the library in place needs nothing.
BUILD = """
import runpy, sys, setuptools.dist
setuptools.dist.Distribution.parse_config_files = lambda *_, **__: None
sys.argv = ["setup.py", "build_ext", "--inplace"]
runpy.run_path("setup.py", run_name="__main__")
"""


@dataclass(frozen=True)
class Part:
    name: str
    limit: float
    do: Callable[[Shell], str]
    always: bool = False
    """Also if it has passed: what it makes may be gone."""


def library(shell: Shell) -> str:
    """The library, for the torch and the GPU that are here; one that was built beforehand will do."""
    if is_newer_than_its_sources():
        available, detail = cuda_kernel(shell)
        if available and f"sm_{shell.gpu.capability.replace('.', '')}" in detail:
            return f"found built: {detail}"
    architectures = os.environ.get("TORCH_CUDA_ARCH_LIST", shell.gpu.capability)  # all others would be in vain here
    shell.python("-c", BUILD, TORCH_CUDA_ARCH_LIST=architectures)
    available, detail = cuda_kernel(shell)
    if not available:
        raise FailedError(f"built, but there is no CUDA backend: {detail}")
    return f"built: {detail}"


def is_newer_than_its_sources() -> bool:
    sources = [ROOT / "setup.py", *(p for p in (ROOT / "csrc").rglob("*") if p.is_file())]
    return LIBRARY.exists() and LIBRARY.stat().st_mtime >= max(p.stat().st_mtime for p in sources)


def cuda_kernel(shell: Shell) -> tuple[bool, str]:
    """Whether the library has it, and what it was built for or why not."""
    show = "import json, affinity_pool as a; b = a.backends()[0]; print(json.dumps([b.available, b.detail]))"
    code, said = shell.run([sys.executable, "-c", show])
    return tuple(json.loads(said.splitlines()[-1])) if code == 0 else (False, f"it does not load: {tail(said)}")


def against_reference(backend: str) -> Callable[[Shell], str]:
    def compare(shell: Shell) -> str:
        need_backend(shell, backend)
        return shell.python(SANITIZE, backend).rstrip().splitlines()[-1]

    return compare


def need_backend(shell: Shell, backend: str) -> None:
    if backend == "triton" and shell.gpu.without_triton:
        raise SkippedError(shell.gpu.without_triton)


def need(*packages: str) -> None:
    if missing := [package for package in packages if find_spec(package) is None]:
        raise SkippedError(f"needs {', '.join(missing)}, not installed here; {BRING.format(' '.join(missing))}")


def tests(backend: str, name: str, folder: str, *options: str, **environment: str) -> Callable[[Shell], str]:
    """A pytest run: how many tests passed on each backend. None on ``backend`` is a failure."""

    def run(shell: Shell) -> str:
        need_backend(shell, backend)
        need("pytest", "hypothesis")
        report = shell.log.with_name(f"{name}.xml")
        report.unlink(missing_ok=True)
        always = [folder, "-vv", "-p", "no:cacheprovider", f"--junit-xml={report}"]
        shell.python(
            "-m", "pytest", *always, *options, COLUMNS="160", **environment
        )  # room for the reasons of failures
        return Report(report).verdict(backend, folder)

    return run


class Report:
    """What a pytest run did on a GPU, by the backend in brackets in a test's name."""

    def __init__(self, xml: Path) -> None:
        self.passed: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        for case in ElementTree.parse(xml).iter("testcase"):
            backend = re.search(r"[\[-](cuda|triton)[]-]", case.get("name", ""))
            skip = case.find("skipped")
            if skip is not None:
                self.skipped[skip.get("message", "")] += 1
            elif backend and case.find("failure") is None and case.find("error") is None:
                self.passed[backend[1]] += 1

    def verdict(self, backend: str, folder: str) -> str:
        reasons = "; ".join(f"{count} ({why})" for why, count in self.skipped.most_common()) or "nothing"
        if not self.passed[backend]:
            raise FailedError(f"no test of {folder} ran on {backend}; skipped {reasons}")
        said = ", ".join(f"{count} passed on {name}" for name, count in sorted(self.passed.items()))
        said += f"; skipped {reasons}" if self.skipped else ""
        if any(WANTING.search(why) for why in self.skipped):
            packages = sorted({word for why in self.skipped for word in re.findall(r"needs ([a-z_]+)$", why)})
            raise IncompleteError(f"{said}; {BRING.format(' '.join(packages))}" if packages else said)
        return said


def on(backend: str) -> tuple[Part, ...]:
    """Every claim about the op, then what needs a GPU by its nature, then what measures: alone, and last."""
    several = find_spec("xdist") is not None
    brief = {"HYPOTHESIS_PROFILE": "brief"} if backend == "triton" else {}  # it compiles anew for each width and window
    measuring = "tests/gpu/test_measuring.py"
    chosen = ["-k", "not triton" if backend == "cuda" else backend]  # some tests of tests/gpu have no backend
    alone = [f"--ignore={measuring}", *chosen, *(["-n", "4", "--dist", "loadfile"] if several else [])]
    claims = ["-k", backend, *(["-n", "8"] if several else [])]
    return (
        Part("claims", 190, tests(backend, "claims", "tests/op", *claims, **brief)),
        Part("device", 190, tests(backend, "device", "tests/gpu", *alone)),
        Part("measuring", 100, tests(backend, "measuring", measuring, *chosen)),
    )


def sanitizer(check: str, backend: str) -> Callable[[Shell], str]:
    """compute-sanitizer on a short program: no access out of bounds, no race in shared memory, no barrier misused."""

    def run(shell: Shell) -> str:
        need_backend(shell, backend)
        code, said = sanitized(shell, check, backend)
        if code:
            raise FailedError(f"{check} on {backend} {ended(code)}:\n{tail(said)}")
        ran = [line for line in said.splitlines() if line.startswith(f"{backend}: ")]
        if not ran:
            raise FailedError(f"{check} on {backend} found nothing, but did not come to the end:\n{tail(said)}")
        return f"nothing found; {ran[-1]}"

    return run


def planted(shell: Shell) -> str:
    """A store beyond the end, in a kernel named so that the filter takes it for ours, is found: the tool does look."""
    need_backend(shell, "triton")  # which compiles it
    code, said = sanitized(shell, "memcheck", "cuda", PLANTED_FAULT)
    if code != 9 or "Invalid __global__ write" not in said:
        raise FailedError(f"memcheck {ended(code)} and did not find a planted fault:\n{tail(said)}")
    return "a planted store beyond the end is found"


def sanitized(shell: Shell, check: str, backend: str, program: str = SANITIZE) -> tuple[int, str]:
    tool = sanitizer_command()
    offered = subprocess.run([tool, "--help"], capture_output=True, text=True, timeout=60).stdout
    options = sanitizer_options(offered, backend)
    command = [tool, "--tool", check, "--error-exitcode", "9", *options, sys.executable, program, backend]
    code, said = shell.run(command, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    if "Device not supported" in said:
        raise SkippedError(f"compute-sanitizer does not support this device or driver ({check})")
    return code, said


def sanitizer_command() -> str:
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"
    found = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=str(toolkit))
    if found is None:
        raise SkippedError(f"no compute-sanitizer on the PATH or in {toolkit}")
    return found


def sanitizer_options(offered: str, backend: str) -> list[str]:
    """Of what ``compute-sanitizer --help`` offers: our kernels alone, in our process, and no calls of libraries.

    torch asks the driver for much that may not be there, and takes no for an answer; that is no fault of a kernel.
    """
    known = set(re.findall(r"^ +(?:-\w \[ )?(--[a-z-]+)", offered, re.MULTILINE))
    wanted = [("--report-api-errors", "no"), ("--target-processes", "application-only"), ("--print-limit", "20")]
    options = [word for option, value in wanted if option in known for word in (option, value)]
    named = next((option for option in ("--kernel-name", "--kernel-regex", "--filter") if option in known), None)
    names = ["affinity_pool"] if backend == "cuda" else triton_kernels()
    return options + [word for name in names if named for word in (named, f"kernel_substring={name}")]


def triton_kernels() -> list[str]:
    """Names of the functions that Triton compiles: those of its kernels are among them."""
    sources = "".join(p.read_text() for p in sorted((ROOT / "triton_kernels").glob("*.py")))
    return sorted(set(re.findall(r"^@triton\.jit.*\ndef (\w+)", sources, re.MULTILINE)))


def suite(name: str, *options: str) -> Callable[[Shell], str]:
    """A suite of the benchmarks, in a file that grows case by case."""

    def run(shell: Shell) -> str:
        out = shell.folder / f"{name}.json"
        shell.python("-m", "affinity_pool.benchmarks", name, "--device", "cuda", "--out", str(out), *options)
        records = json.loads(out.read_text())["results"]
        said = "; ".join(headlines(records)) if name == "gpu-headline" else f"{len(records)} cases in {out.name}"
        failed = dict(item for record in records for item in record.get("failed", {}).items())
        if failed:
            raise IncompleteError(f"{said}; could not run: " + ", ".join(f"{n} ({why})" for n, why in failed.items()))
        return said

    return run


def headlines(records: Iterable[dict[str, Any]]) -> Iterable[str]:
    for record in records:
        case, by = record["case"], record["contenders"]
        times = ", ".join(f"{name} {entry['graph']['us']['p50']:.1f} us" for name, entry in by.items())
        yield f"{case['tokens']} rows, {case['cache']}: {times}"


def cost(name: str, *options: str) -> Callable[[Shell], str]:
    """Time to first token, memory, KV cache and decoding at the size of Qwen2-Audio-7B."""

    def run(shell: Shell) -> str:
        need("transformers", "typer", "rich", "matplotlib")
        out = shell.folder / "logs" / name  # the page and every round; what is there is not measured again
        command = ["-m", "affinity_pool.cli", "cost", "--random-weights", "qwen2-audio-7b", "--device", "cuda"]
        shell.python(*command, "--out", str(out), *options)
        shutil.copy(out / "summary.json", shell.folder / f"{name}.json")
        return f"{name}.json"

    return run


STAGES: dict[str, tuple[Part, ...]] = {
    "build": (
        Part("library", 280, library, always=True),
        Part("cuda against the reference", 50, against_reference("cuda")),
        Part("triton against the reference", 60, against_reference("triton")),
        Part("headline", 90, suite("gpu-headline", "--rounds", "50", "--seconds", "0.25")),
    ),
    "tests-cuda": on("cuda"),
    "tests-triton": on("triton"),
    "sanitizer": (
        Part("planted fault", 60, planted),
        Part("memcheck on cuda", 110, sanitizer("memcheck", "cuda")),
        Part("racecheck on cuda", 110, sanitizer("racecheck", "cuda")),
        Part("synccheck on cuda", 100, sanitizer("synccheck", "cuda")),
        Part("memcheck on triton", 100, sanitizer("memcheck", "triton")),
    ),
    "bench": (
        Part("contenders", 260, suite("gpu", "--rounds", "100", "--seconds", "0.3")),
        Part("sweep", 220, suite("gpu-sweep", "--rounds", "50", "--seconds", "0.25")),
    ),
    "cost": (
        Part("one prompt", 280, cost("cost", "--idle")),
        Part("batches", 200, cost("cost-batches", "--batch", "4,16", "--rounds", "11", "--new-tokens", "16")),
    ),
}
