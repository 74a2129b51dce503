"""The folder a run owns, and how anything in it is written and read back.

``run.json`` says what the run is and what it was given; only a run that is the same may go on in it. Files are written
aside and renamed, so that each is whole or not there; lines that a crash, or a full disk, cut short are skipped when
they are read. JSON here holds any text, lone surrogates too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError

RUN, PROVENANCE, SUMMARY = "run.json", "provenance.json", "summary.json"
ASIDE = ".affinity-pool-"  # how the names of files begin that are not whole yet
_OWN_KEYS = {RUN: {"model"}, PROVENANCE: {"versions"}, SUMMARY: {"provenance"}}
_SURROGATE = re.compile("[\ud800-\udfff]")
_KINDS = {"texts": "texts, tasks, languages or words", "audio": "recordings", "model": "model files"}


def take(folder: Path, command: str) -> None:
    """Make sure, before anything expensive, that ``command`` can write into ``folder`` and overwrites nobody's files.

    Raises:
        InputError: it is no folder, cannot be made or written to, holds files that are not of a run, or another
            command's results.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(prefix=ASIDE, dir=folder):
            pass
        if foreign := _foreign(folder):
            raise InputError(
                f"{folder} holds files that are not of a run, such as {foreign!r}, which could be overwritten: "
                "give --out a folder that is empty or not there yet"
            )
        for name in (RUN, SUMMARY):
            there = read(folder / name)
            of = there.get("command", command) if isinstance(there, dict) else command
            if of != command:
                raise InputError(f"{folder} holds what {of!r} has written: give another --out, or remove it")


def is_begun(folder: Path, facts: dict[str, Any], given: dict[str, str]) -> bool:
    """Whether ``folder`` holds the beginning of the run with these ``facts``, done on what was ``given``.

    Otherwise it is nobody's, and to be :func:`begin`-ned.

    Raises:
        InputError: it holds a run with other settings, or one that was given something else under the same names.
    """
    there = read(folder / RUN)
    if not isinstance(there, dict) or "command" not in there:
        return False
    before = there.pop("given", None)
    before = before if isinstance(before, dict) else {}
    if there != facts:
        differing = sorted(key for key in {*there, *facts} if there.get(key) != facts.get(key))
        raise InputError(
            f"{folder} holds a run with other settings ({', '.join(differing)}): give another --out, or remove it"
        )
    if before != given:
        differing = sorted(kind for kind in {*before, *given} if before.get(kind) != given.get(kind))
        named = ", ".join(_KINDS.get(kind, kind) for kind in differing)
        raise InputError(
            f"{folder} holds a run of the same settings on other {named}: they have changed since, under the same "
            "names. Give another --out, or remove it"
        )
    return True


def begin(folder: Path, facts: dict[str, Any], given: dict[str, str]) -> None:
    """Make the folder this run's, once what else it begins with is there."""
    write_json(folder / RUN, {**facts, "given": given})


def clear(folder: Path) -> None:
    """Remove the parts of a run that nobody knows any more: they could pass for this one's."""
    with writing(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)


def dumps(value: Any, indent: int | None = None) -> str:
    """JSON of any text, readable: only what UTF-8 cannot hold is escaped."""
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, indent=indent, ensure_ascii=False))


def write_json(path: Path, value: Any, indent: int = 1) -> None:
    """As :func:`write`, with a newline at the end."""
    write(path, dumps(value, indent) + "\n")


def write(path: Path, text: str) -> None:
    """Write a file whole, or leave what is there.

    Raises:
        InputError: it cannot be written; the message names it.
    """
    with writing(path):
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", errors="backslashreplace", newline="\n", prefix=ASIDE, dir=path.parent, delete=False
        ) as aside:
            try:
                aside.write(text)
                aside.flush()
                os.fsync(aside.fileno())
            except BaseException:
                os.unlink(aside.name)
                raise
        os.chmod(aside.name, 0o666 & ~_umask())
        os.replace(aside.name, path)


def read(path: Path) -> Any:
    """The JSON in a file; None where it is missing or not whole."""
    try:
        return json.loads(path.read_bytes().decode("utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def read_lines(path: Path) -> Iterator[Any]:
    """The JSON of each line that is whole; others are left out. Lines end at ``\\n`` alone, whatever texts hold."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    for line in lines:
        try:
            yield json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            continue


@contextmanager
def writing(path: Path, then: str = "") -> Iterator[None]:
    """Say in words where and why something cannot be written, such as a full disk, and what ``then``."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError) as error:  # a ValueError is a NUL in a name
        raise InputError(f"cannot write to {path}: {getattr(error, 'strerror', None) or error}{then}") from error


GOES_ON = ". What is done is kept; started again, the run goes on"


def _foreign(folder: Path) -> str | None:
    """A file that would be in danger; None where there is none, or the folder is a run's."""
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(ASIDE)]
    runs = [folder, *(entry for entry in entries if entry.is_dir())]  # calibrate has a folder for each of its steps
    if any(_is_own(place / name, keys) for place in runs for name, keys in _OWN_KEYS.items()):
        return None
    return next((entry.name for entry in entries if _holds_something(entry)), None)


def _is_own(file: Path, keys: set[str]) -> bool:
    if not file.is_file():
        return False
    found = read(file)
    return isinstance(found, dict) and keys <= set(found)


def _holds_something(entry: Path) -> bool:
    if entry.is_dir() and not entry.is_symlink():
        return any(entry.iterdir())
    return entry.lstat().st_size > 0  # an empty run.json is what a power loss leaves


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
