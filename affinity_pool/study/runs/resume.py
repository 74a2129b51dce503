"""How a run is kept, goes on where it was left, and is shared by processes: for recordings and for timings alike.

A run is units of work in a fixed order, each about things that have names, and each finished unit is one line of
``parts/`` with a checksum. A run started again does the missing units, if its settings and what it was given are the
same; at the end their records become ``results.jsonl``, one a line.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ...provenance import provenance
from ..errors import InputError
from . import folders
from .results import Facts


class Processes(Protocol):
    """Those that share a run, as ``accelerate.PartialState`` tells of them."""

    process_index: int
    num_processes: int

    @property
    def is_main_process(self) -> bool: ...
    def main_process_first(self) -> AbstractContextManager[Any]: ...
    def wait_for_everyone(self) -> None: ...


class OneProcess:
    """A run that is not shared."""

    process_index: int = 0
    num_processes: int = 1
    is_main_process: bool = True

    def main_process_first(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def wait_for_everyone(self) -> None: ...


@dataclass(frozen=True)
class Resumable:
    """A run and its folder."""

    folder: Path
    settings: Facts
    """Two runs with equal settings, given the same, give equal results."""
    given: Mapping[str, str]
    """Digests of what it reads."""
    units: Sequence[Sequence[str]]
    """Names of what each unit is about."""
    key: str
    """Where a record has its name."""
    device: str
    processes: Processes

    def finish(
        self,
        work: Callable[[int], Sequence[Mapping[str, Any]]],
        progress: Callable[[Sequence[int]], Any] = iter,
    ) -> list[dict[str, Any]]:
        """Do what is missing, and return all records in order, in every process.

        Args:
            work: gives the records of a unit: one or more for each of its names, in their order.
            progress: wraps the units of this process.

        Raises:
            InputError: the folder belongs to another run, or cannot be written to.
        """
        with self.processes.main_process_first():
            done = self._open()
        self.processes.wait_for_everyone()  # before anything is done: all must share out the same missing units
        missing = [number for number in range(len(self.units)) if number not in done]
        if mine := missing[self.processes.process_index :: self.processes.num_processes]:
            self._do(mine, work, progress)
        self.processes.wait_for_everyone()
        done = self.done()
        if lost := [number for number in range(len(self.units)) if number not in done]:
            raise InputError(f"{len(lost)} parts are not in {self.folder / 'parts'} as they were written: start again")
        records = [record for number in range(len(self.units)) for record in done[number]]
        if self.processes.is_main_process:
            folders.write(self.folder / "results.jsonl", "".join(folders.dumps(record) + "\n" for record in records))
        return records

    def began(self) -> Facts:
        """The machine, versions and commit that the run was begun with, see :mod:`affinity_pool.provenance`."""
        found: Facts = folders.read(self.folder / folders.PROVENANCE)
        return found

    def done(self) -> dict[int, list[dict[str, Any]]]:
        """Records of finished units; a line that is not what was written of one is a unit that has to be done again."""
        places: dict[Any, list[int]] = {}
        for number, unit in enumerate(self.units):
            places.setdefault(tuple(unit), []).append(number)
        found = {}
        for part in sorted((self.folder / "parts").glob("*.jsonl")):
            for entry in folders.read_lines(part):
                match entry:
                    case {"batch": int(number), "records": [*records], "crc": int(crc)} if crc == _crc(records):
                        names = tuple(self._names(records))
                        if number not in places.get(names, ()):  # the list of units has changed since
                            number = next(iter(places.get(names, ())), -1)
                        if number >= 0:
                            found[number] = records
        return found

    def _names(self, records: Sequence[Any]) -> dict[Any, None]:
        """Once each, in order."""
        return dict.fromkeys(record.get(self.key) if isinstance(record, dict) else None for record in records)

    def _open(self) -> dict[int, list[dict[str, Any]]]:
        """Take the folder for this run, or find what is done of it."""
        settings, given = json.loads(json.dumps(self.settings)), dict(self.given)
        folders.take(self.folder, settings["command"])
        begun = folders.is_begun(self.folder, settings, given)
        if not begun:
            folders.clear(self.folder / "parts")
        if not begun or "versions" not in (self.began() or ()):
            about = provenance(self.device)
            if begun:
                about["note"] = "the record of the run's beginning was lost; this is of a day when it went on"
            folders.write_json(self.folder / folders.PROVENANCE, about)
        if not begun:
            folders.begin(self.folder, settings, given)
        return self.done()

    def _do(self, mine: Sequence[int], work: Callable[[int], Any], progress: Callable[[Sequence[int]], Any]) -> None:
        own = self.folder / "parts" / f"{self.processes.process_index}.jsonl"
        with folders.writing(own):
            part = own.open("a", encoding="utf-8", newline="\n")
        with part:
            part.write("\n" * bool(part.tell()))  # ends a line that a crash cut short
            for number in progress(mine):
                line = as_line(number, work(number))
                with folders.writing(own, folders.GOES_ON):
                    part.write(line)
                    part.flush()


def as_line(number: int, records: Sequence[Any]) -> str:
    """A finished unit as it stands in ``parts/``."""
    return folders.dumps({"batch": number, "records": records, "crc": _crc(records)}) + "\n"


def _crc(records: Sequence[Any]) -> int:
    return zlib.crc32(folders.dumps(records).encode())
