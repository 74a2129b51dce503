"""What gpu_check keeps: of each stage a folder while it runs and a tar of it outside, of all of them a summary.

The folder lies in ``build/gpu-check/<GPU>/`` and stays there from run to run. Where it is missing, as on a new machine,
the stage's tar is unpacked again if there is one. A part's outcome belongs to the code that it saw: of other code, it
and all that its stage kept are forgotten when the stage begins.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import zlib
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .shell import ROOT

WORK = ROOT / "build" / "gpu-check"
SOURCES = (
    *("csrc/**/*", "triton_kernels/**/*.py", "affinity_pool/**/*.py", "setup.py", "tests/**/*.py"),
    *("benchmarks/*.py", "benchmarks/gpu_check/*.py"),
)


class Kept:
    """One stage: results at the top of its folder; its log, its outcome and what need not be committed in ``logs``."""

    def __init__(self, stage: str, parts: Sequence[str], work: Path, out: Path) -> None:
        self.stage: str = stage
        self.parts: tuple[str, ...] = tuple(parts)
        self.folder: Path = work / stage
        self.tar: Path = out / f"{stage}.tar.gz"
        self.log: Path = self.folder / "logs" / f"{stage}.log"
        self.tables: Path = self.folder / "logs" / f"{stage}.md"
        self._file = self.folder / "logs" / f"{stage}.json"
        if not self.folder.exists() and self.tar.exists():
            self._unpack()
        found: dict[str, Any] = json.loads(self._file.read_text()) if self._file.exists() else {}
        self.code: str = found.get("code", "")
        self.outcomes: dict[str, dict[str, Any]] = found.get("parts", {})

    def _unpack(self) -> None:
        fresh = self.folder.with_name(f"{self.stage}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            with tarfile.open(self.tar) as tar:
                tar.extractall(fresh, filter="data")
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            print(f"{self.tar} cannot be read ({error}): {self.stage} starts anew", flush=True)
        else:
            fresh.rename(self.folder)

    def begin(self, code: str, again: bool) -> None:
        """Go on where this code was, or start anew."""
        if again or self.code != code:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.code, self.outcomes = code, {}
        self.log.parent.mkdir(parents=True, exist_ok=True)

    def note(self, part: str, status: str, seconds: float, detail: str) -> None:
        """The outcome of a part: on disk and in the tar at once."""
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.outcomes[part] = {"status": status, "seconds": round(seconds, 1), "date": date, "detail": detail}
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps({"code": self.code, "parts": self.outcomes}, indent=1) + "\n")
        fresh.replace(self._file)
        self.save()

    def save(self) -> None:
        """Renew the tar. It is there whole at any time, whenever this process may end."""
        fresh = self.tar.with_name(".new")  # one name for all stages: what is left of it is one file more, at most
        with tarfile.open(fresh, "w:gz") as tar:
            for path in sorted(p for p in self.folder.rglob("*") if p.is_file()):
                try:
                    info, data = tar.gettarinfo(path, str(path.relative_to(self.folder))), path.read_bytes()
                except FileNotFoundError:  # replaced or removed by the command that runs
                    continue
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        fresh.replace(self.tar)

    def passed(self, part: str) -> bool:
        return self.outcomes.get(part, {}).get("status") == "PASS"

    def verdict(self) -> str:
        """The worst of its parts; INCOMPLETE, too, if one was not begun."""
        found = {self.outcomes.get(part, {}).get("status", "INCOMPLETE") for part in self.parts}
        for status in ("FAIL", "CUT"):
            if status in found:
                return status
        return found.pop() if len(found) == 1 else "INCOMPLETE"


def code_here(machine: str) -> str:
    """A hash over the code and the machine's description: where it is the same, an outcome still holds."""
    digest = hashlib.sha256(machine.encode())
    for path in sorted({p for pattern in SOURCES for p in ROOT.glob(pattern) if p.is_file()}):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def summary(title: str, stages: Sequence[Kept], code: str) -> str:
    """A line a part, then what failed, then the tables of what was measured."""
    lines = [f"# {title}", "", f"Code and machine: {code}. What saw others is marked with theirs.", ""]
    lines += ["| stage | part | | seconds | date | |", "| --- | --- | --- | --- | --- | --- |"]
    long: list[str] = []
    for kept in stages:
        other = f" (saw {kept.code})" if kept.outcomes and kept.code != code else ""
        for part in kept.parts:
            if part not in kept.outcomes:
                lines.append(f"| {kept.stage} | {part} | not begun | | | |")
                continue
            outcome = kept.outcomes[part]
            first, _, rest = outcome["detail"].partition("\n")
            cells = [kept.stage, part, outcome["status"] + other, str(outcome["seconds"]), outcome["date"]]
            lines.append("| " + " | ".join([*cells, first.replace("|", " ")]) + " |")
            if rest:
                long += ["", f"## {kept.stage}: {part}", "", "```", first, rest, "```"]
    tables = [f"\n## {kept.stage}\n\n{kept.tables.read_text()}" for kept in stages if kept.tables.exists()]
    return "\n".join([*lines, *long, *tables]) + "\n"
