"""All that can only be checked on a GPU, in stages: builds, tests, sanitizes, times. No network, nothing installed.

    python benchmarks/gpu_check.py                  every stage
    python benchmarks/gpu_check.py bench cost       some; each can run alone once `build` has run

The python that runs this is the one that is checked. Each stage has a time limit, a log and a line: PASS, FAIL or SKIP
with the reason. Results, the logs and summary.md go to ``benchmarks/results/<GPU>/``; a later run of some stages renews
their part of it. Exits 0, 1 if a stage failed, 2 if there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 570.0  # seconds a stage may take
TAIL = 25  # lines of a failed command's output that are shown


class FailedError(Exception):
    """The stage found something wrong."""


class SkippedError(Exception):
    """The stage cannot run here, through no fault of the code."""


@dataclass
class Shell:
    """Runs the commands of a stage, all within its time limit, and keeps what they say in its log."""

    log: Path
    results: Path
    limit: float = LIMIT
    started: float = field(default_factory=time.monotonic)

    def python(self, *arguments: str, limit: float = LIMIT, **environment: str) -> str:
        """Output of this python; FailedError if it does not end well."""
        code, said = self.run([sys.executable, *arguments], limit, **environment)
        if code:
            raise FailedError(f"{' '.join(arguments[:3])} {ended(code)}:\n{tail(said)}")
        return said

    def run(self, command: Sequence[str], limit: float = LIMIT, **environment: str) -> tuple[int, str]:
        """Exit status and output; a command over its limit is killed with all it started."""
        limit = min(limit, self.limit - (time.monotonic() - self.started))
        if limit <= 0:
            raise FailedError(f"over {self.limit:.0f} s, before {' '.join(command[1:3])}")
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        env = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", **environment}
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a+") as log:
            print(f"\n$ {' '.join(command)}", file=log, flush=True)
            begin = log.tell()
            child = subprocess.Popen(
                command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            code: int | None = None
            try:
                with suppress(subprocess.TimeoutExpired):
                    code = child.wait(limit)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)  # what it leaves running would hold the device
                child.wait()
            log.seek(begin)
            said = log.read()
        if code is None:
            raise FailedError(f"{' '.join(command[1:4])} was killed after {limit:.0f} s:\n{tail(said)}")
        return code, said


def ended(code: int) -> str:
    return f"ended with {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"


def tail(said: str) -> str:
    return "\n".join(said.rstrip().splitlines()[-TAIL:])


def build(shell: Shell) -> str:
    """The library, in place, for the torch that is here."""
    shell.python("setup.py", "build_ext", "--inplace")
    found = backends(shell)
    if not found["cuda"]["available"]:
        raise FailedError(f"built, but there is no CUDA backend: {found['cuda']['detail']}")
    return "; ".join(f"{name}: {found[name]['detail']}" for name in ("cuda", "triton"))


def backends(shell: Shell) -> dict[str, dict[str, Any]]:
    show = "import json, affinity_pool as a; print(json.dumps({b.name: vars(b) for b in a.backends()}))"
    found: dict[str, dict[str, Any]] = json.loads(shell.python("-c", show).splitlines()[-1])
    return found


def tests(shell: Shell) -> str:
    """Every claim about the op, on CUDA and on Triton, whose kernels compile anew for each new width and window."""
    several = ["-n", "8"] if find_spec("xdist") else []
    triton = backends(shell)["triton"]

    def on_cuda() -> str:
        return pytest(shell, "cuda", "tests/op", "-k", "cuda", *several, limit=300)

    def on_triton() -> str:
        if not triton["available"]:
            return f"Triton left out: {triton['detail']}"
        return pytest(shell, "triton", "tests/op", "-k", "triton", *several, HYPOTHESIS_PROFILE="brief")

    return each(on_cuda, on_triton)


def graphs(shell: Shell) -> str:
    """What needs a GPU by its nature: streams, graphs, sizes beyond 32 bits, opcheck, inductor."""
    return pytest(shell, "cuda", "tests/gpu", *(["-n", "4", "--dist", "loadfile"] if find_spec("xdist") else []))


def pytest(shell: Shell, backend: str, folder: str, *options: str, limit: float = LIMIT, **environment: str) -> str:
    """How many tests passed on each backend, and why others were skipped. None on ``backend``: that is a failure."""
    need(("pytest", "hypothesis"))
    report = shell.log.with_name(f"{Path(folder).name}-{backend}.xml")
    report.unlink(missing_ok=True)
    always = [folder, "-p", "no:cacheprovider", f"--junit-xml={report}"]
    shell.python("-m", "pytest", *always, *options, limit=limit, **environment)
    counts = Report(report)
    if not counts.passed[backend]:
        raise FailedError(f"no test of {folder} ran on {backend}; skipped {counts.reasons()}")
    passed = ", ".join(f"{count} passed on {name}" for name, count in sorted(counts.passed.items()))
    return f"{passed}; skipped {counts.reasons()}" if counts.skipped else passed


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

    def reasons(self) -> str:
        return "; ".join(f"{count} ({why})" for why, count in self.skipped.most_common()) or "nothing"


def sanitizer(shell: Shell) -> str:
    """compute-sanitizer on a short program: no access out of bounds, no race in shared memory, no barrier misused."""
    tool = sanitizer_command()
    said = []
    plan = [("memcheck", "cuda"), ("racecheck", "cuda"), ("synccheck", "cuda")]
    if backends(shell)["triton"]["available"]:
        plan.append(("memcheck", "triton"))
    for check, backend in plan:
        command = [tool, "--tool", check, "--error-exitcode", "9", "--print-limit", "20"]
        command += [sys.executable, "benchmarks/sanitize.py", backend]
        code, output = shell.run(command, 240, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        if "Device not supported" in output:
            raise SkippedError(f"compute-sanitizer does not support this device or driver ({check})")
        if code:
            raise FailedError(f"{check} on {backend} {ended(code)}:\n{tail(output)}")
        said.append(f"{check} on {backend}")
    return f"nothing found by {', '.join(said)}"


def sanitizer_command() -> str:
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"
    found = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=str(toolkit))
    if found is None:
        raise SkippedError(f"no compute-sanitizer on the PATH or in {toolkit}")
    return found


def bench(shell: Shell) -> str:
    """The kernel against a copy and against what torch can do, then one parameter at a time."""

    def suite(name: str, *options: str, limit: float = LIMIT) -> str:
        out = str(shell.results / f"{name}.json")
        shell.python("-m", "affinity_pool.bench", name, "--device", "cuda", "--out", out, *options, limit=limit)
        return f"{name}.json"

    return each(
        lambda: suite("gpu", "--rounds", "100", "--seconds", "0.5", limit=290),
        lambda: suite("gpu-sweep", "--rounds", "50", "--seconds", "0.25"),
    )


def each(*parts: Callable[[], str]) -> str:
    """Do all parts of a stage, though one may fail: the others have something to tell."""
    said, failures = [], []
    for part in parts:
        try:
            said.append(part())
        except FailedError as error:
            failures.append(str(error))
    if failures:
        raise FailedError("\n".join([*failures, *said]))
    return "; ".join(said)


def cost(shell: Shell) -> str:
    """Time to first token, memory, KV cache and decoding at the size of Qwen2-Audio-7B, one prompt and batches."""
    need(("transformers", "typer", "rich", "matplotlib"))

    def measured(name: str, *options: str) -> str:
        out = shell.results / "logs" / name  # the page and every round, not to be committed
        shutil.rmtree(out, ignore_errors=True)
        command = ["-m", "affinity_pool.cli", "cost", "--random-weights", "qwen2-audio-7b", "--device", "cuda"]
        shell.python(*command, "--out", str(out), *options)
        shutil.copy(out / "summary.json", shell.results / f"{name}.json")
        return f"{name}.json"

    return each(
        lambda: measured("cost", "--idle"),
        lambda: measured("cost-batches", "--batch", "4,16", "--rounds", "11", "--new-tokens", "16"),
    )


def need(packages: Sequence[str]) -> None:
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise SkippedError(f"needs {', '.join(missing)}, not installed here")


STAGES: dict[str, Callable[[Shell], str]] = {
    "build": build,
    "tests": tests,
    "graphs": graphs,
    "sanitizer": sanitizer,
    "bench": bench,
    "cost": cost,
}


def run_stage(name: str, results: Path) -> dict[str, Any]:
    """Outcome of a stage, printed as one line and, if it failed, what went wrong."""
    log = results / "logs" / f"{name}.log"
    log.unlink(missing_ok=True)
    shell = Shell(log, results)
    try:
        status, detail = "PASS", STAGES[name](shell)
    except SkippedError as reason:
        status, detail = "SKIP", str(reason)
    except FailedError as error:
        status, detail = "FAIL", str(error)
    seconds = round(time.monotonic() - shell.started, 1)
    print(f"{status}  {name}  {seconds} s  {detail}", flush=True)
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"status": status, "seconds": seconds, "date": date, "detail": detail}


def ask(*arguments: str, folder: Path = ROOT) -> str:
    """What this python prints, nothing if it fails. Its errors are shown."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=env, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def gpu() -> str:
    """Name of the GPU that torch sees, empty if there is none. Asked in a child: this process stays off the device."""
    return ask("-c", "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')")


def write_summary(results: Path, outcomes: dict[str, Any]) -> None:
    """``gpu-check.json`` and ``summary.md``, from this run's stages and those of earlier runs."""
    show = "import json; from affinity_pool.provenance import provenance; print(json.dumps(provenance('cuda')))"
    where = json.loads(ask("-c", show) or "null")
    code = where["sources"] if where else None  # a stage of an earlier run may have seen other code
    file = results / "gpu-check.json"
    known = json.loads(file.read_text())["stages"] if file.exists() else {}
    known |= {name: {**outcome, "sources": code} for name, outcome in outcomes.items()}
    stages = {name: known[name] for name in STAGES if name in known}
    file.write_text(json.dumps({"provenance": where, "stages": stages}, indent=1) + "\n")
    lines = [f"# {where['device'] if where else 'GPU check'}", ""]
    lines += ["| stage | | seconds | sources | |", "| --- | --- | --- | --- | --- |"]
    for name, stage in stages.items():
        first = stage["detail"].partition("\n")[0].replace("|", " ")
        lines.append(f"| {name} | {stage['status']} | {stage['seconds']} | {stage['sources']} | {first} |")
    for name in ("gpu", "gpu-sweep", "cost", "cost-batches"):
        if (results / f"{name}.json").exists():
            table = ask("-m", "affinity_pool.bench.table", f"{name}.json", folder=results)
            lines += ["", f"## {name}", "", table]
    (results / "summary.md").write_text("\n".join(lines) + "\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="stage", help=f"{', '.join(STAGES)}; all if none is named")
    parser.add_argument("--out", type=Path, help="folder for the results, by default benchmarks/results/<GPU>")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.stages if name not in STAGES]
    if unknown:
        parser.error(f"no stage {', '.join(unknown)}; there are {', '.join(STAGES)}")
    name = gpu()
    if not name:
        print("no GPU here that torch can use: nothing was checked", file=sys.stderr)
        return 2
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    results = (options.out or ROOT / "benchmarks" / "results" / slug).resolve()
    results.mkdir(parents=True, exist_ok=True)
    print(f"{name}; results in {results}", flush=True)
    outcomes = {}
    for stage in STAGES:
        if stage in options.stages or not options.stages:
            outcomes[stage] = run_stage(stage, results)
            write_summary(results, outcomes)
    return int(any(outcome["status"] == "FAIL" for outcome in outcomes.values()))


if __name__ == "__main__":
    raise SystemExit(main())
