"""All that can only be checked on a GPU, in stages: builds, tests, sanitizes, times. No network, nothing installed.

    python benchmarks/gpu_check                                          every stage
    python benchmarks/gpu_check build tests-cuda --out FOLDER --limit 570

The python that runs this is the one that is checked. A stage is a row of parts (see stages.py), each with a time
limit, together under 500 s. In the folder, ``benchmarks/results/<GPU>`` unless told, a stage has a tar of its results
and logs, renewed after each part and every ten seconds meanwhile, and ``summary.md`` has a line a part: at most eight
files. However a run ends, that is left. The next one goes on: a part that has passed, on this code and this machine, is
not done again; any other is. ``--limit`` is for a machine that ends a command after a time: no part is begun that might
take longer than that.

    PASS        done, and right
    FAIL        something is wrong
    CUT         over its limit, or ended from outside: begun, not done
    INCOMPLETE  what ran is right; some of it could not run, or was not begun
    SKIP        cannot run here: a package or a tool is missing

Exit status: 0 if every stage asked for has passed whole; 1 if one is FAIL or CUT; 2 without a GPU; 3 if nothing failed,
but a stage is INCOMPLETE or SKIP; 128 + the signal's number if one ended it.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from .record import WORK, Kept, code_here, summary
from .shell import ROOT, Gpu, PartError, Shell, ask
from .stages import STAGES, Part

DEVICE = """
import json, torch
if torch.cuda.is_available():
    major, minor = torch.cuda.get_device_capability()
    print(json.dumps([torch.cuda.get_device_name(), f"{major}.{minor}"]), flush=True)
    from affinity_pool import triton_kernels
    from affinity_pool.provenance import provenance
    print(json.dumps([triton_kernels.missing(), provenance("cuda")]))
"""


class StoppedError(BaseException):
    """A signal ended the run; no Exception, so that no part takes it for its own."""


def stop(number: int, frame: FrameType | None) -> None:
    for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(one, signal.SIG_IGN)  # the end is being written
    raise StoppedError(number)


@dataclass
class Run:
    """One call of this program: where, on what code, until when."""

    gpu: Gpu
    title: str
    code: str
    out: Path
    work: Path
    until: float

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self.work.mkdir(parents=True, exist_ok=True)
        self.stages: dict[str, Kept] = {
            name: Kept(name, [part.name for part in parts], self.work, self.out) for name, parts in STAGES.items()
        }

    def stage(self, name: str, again: bool) -> None:
        """Do what is missing of a stage."""
        kept = self.stages[name]
        kept.begin(self.code, again)
        for part in STAGES[name]:
            if kept.passed(part.name) and not part.always:
                print(f"PASS  {name}: {part.name}, on {kept.outcomes[part.name]['date']}", flush=True)
            elif time.monotonic() + part.limit > self.until:
                print(f"{name}: {part.name} may take {part.limit:.0f} s, more than is left: not begun", flush=True)
            else:
                self.part(kept, part)
        if measured := sorted(kept.folder.glob("[a-z]*.json")):
            kept.tables.write_text(ask("-m", "affinity_pool.benchmarks.render", *map(str, measured), limit=15))
        kept.save()
        self.summarise()

    def part(self, kept: Kept, part: Part) -> None:
        """Do one part; its outcome is printed as one line and, if it failed, what went wrong."""
        begun = time.monotonic()
        try:
            kept.note(part.name, "CUT", 0, "was going on when this was written")
            self.summarise()
            status, detail = outcome(part, Shell(kept.folder, kept.log, part.limit, self.gpu, kept.save))
        except StoppedError as signalled:
            kept.note(part.name, "CUT", time.monotonic() - begun, f"ended by {signal.Signals(signalled.args[0]).name}")
            self.summarise()
            raise
        kept.note(part.name, status, time.monotonic() - begun, detail)
        self.summarise()
        print(f"{status}  {kept.stage}: {part.name}, {time.monotonic() - begun:.1f} s: {detail}", flush=True)

    def summarise(self) -> None:
        fresh = self.out / ".new"
        fresh.write_text(summary(self.title, list(self.stages.values()), self.code))
        fresh.replace(self.out / "summary.md")


def outcome(part: Part, shell: Shell) -> tuple[str, str]:
    try:
        return "PASS", part.do(shell)
    except PartError as error:
        return error.status, str(error)
    except Exception as error:  # of the part itself: the others have something to tell all the same
        return "FAIL", f"{type(error).__name__}: {error}"


def find_gpu() -> tuple[Gpu, str, str] | None:
    """The GPU that torch sees, a title and a description of the machine; None without a GPU."""
    first, *more = [*ask("-c", DEVICE).splitlines(), ""]
    if not first:
        return None
    name, capability = json.loads(first)
    if not more[0]:  # the package does not import: there is more to say, by the stages
        return Gpu(name, capability, "affinity_pool does not import"), name, name
    without_triton, where = json.loads(more[0])
    versions = {package: version for package, version in where["versions"].items() if version}
    title = f"{where['device']}, " + ", ".join(f"{package} {version}" for package, version in versions.items())
    title += f", commit {where['commit']}" if where["commit"] else f", sources {where['sources']}"
    return Gpu(name, capability, without_triton), title, f"{where['device']} {versions}"


def exit_status(verdicts: Sequence[str]) -> int:
    if "FAIL" in verdicts or "CUT" in verdicts:
        return 1
    return 0 if all(verdict == "PASS" for verdict in verdicts) else 3


def main(arguments: list[str] | None = None) -> int:
    begun = time.monotonic()
    as_it_is = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__, formatter_class=as_it_is)
    parser.add_argument("stages", nargs="*", metavar="stage", help=f"{', '.join(STAGES)}; all if none is named")
    parser.add_argument("--out", type=Path, help="folder for the results, by default benchmarks/results/<GPU>")
    parser.add_argument("--limit", type=float, default=float("inf"), metavar="SECONDS", help="of this whole run")
    parser.add_argument("--again", action="store_true", help="also do what has passed already")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.stages if name not in STAGES]:
        parser.error(f"no stage {', '.join(unknown)}; there are {', '.join(STAGES)}")
    for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(one, stop)
    try:
        return check(options.stages or list(STAGES), options.out, begun + options.limit, options.again)
    except StoppedError as signalled:
        print(f"ended by {signal.Signals(signalled.args[0]).name}", file=sys.stderr)
        return 128 + int(signalled.args[0])


def check(asked: Sequence[str], out: Path | None, until: float, again: bool) -> int:
    found = find_gpu()
    if found is None:
        print("no GPU here that torch can use: nothing was checked", file=sys.stderr)
        return 2
    gpu, title, machine = found
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
    out = (out or ROOT / "benchmarks" / "results" / slug).resolve()
    run = Run(gpu, title, code_here(machine), out, WORK / slug, until)
    print(f"{title}; results in {out}", flush=True)
    verdicts = {}
    for name in STAGES:
        if name in asked:
            run.stage(name, again)
            verdicts[name] = run.stages[name].verdict()
    print(", ".join(f"{name} {verdict}" for name, verdict in verdicts.items()), flush=True)
    return exit_status(list(verdicts.values()))
