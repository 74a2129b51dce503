"""Manifests: JSON lines, one recording each.

    {"audio": "clip.flac", "text": "five nine", "task": "transcribe", "language": "en",
     "words": [["five", 0.13, 0.76], ["nine", 0.87, 1.56]], "source": "where it is from"}

``audio`` is a path relative to the manifest; everything else is optional. ``text`` is the right answer to ``task``,
which is also the prompt unless the command is given another; ``words`` are the words spoken, with start and end in
seconds. Other keys are ignored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from .. import InputError

SHOWN = 10  # bad lines named in one error


class Word(NamedTuple):
    """A spoken word and where it is, in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Utterance:
    """One recording and what is known of it."""

    audio: Path
    text: str | None = None
    task: str = "transcribe"
    language: str | None = None
    words: tuple[Word, ...] = ()
    source: str | None = None


def read_manifest(path: Path) -> list[Utterance]:
    """Read a manifest whole, or raise an :class:`InputError` that names every bad line (the first ten)."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the manifest {path}: {error}") from error
    utterances, bad = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            utterances.append(_utterance(json.loads(line), path.parent))
        except ValueError as error:
            bad.append(f"  line {number}: {error}")
    if bad:
        more = [f"  and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
        raise InputError("\n".join([f"{path}: {len(bad)} of {len(lines)} lines cannot be used", *bad[:SHOWN], *more]))
    if not utterances:
        raise InputError(f"the manifest {path} is empty")
    return utterances


def _utterance(entry: Any, folder: Path) -> Utterance:
    if not isinstance(entry, dict):
        raise ValueError(f"expected a JSON object, got {type(entry).__name__}")
    for key in ("audio", "text", "task", "language", "source"):
        if not isinstance(entry.get(key, ""), str) and not (entry[key] is None and key != "audio"):
            raise ValueError(f"{key} must be a string, got {entry[key]!r}")
    if not entry.get("audio"):
        raise ValueError("audio, the path of the recording, is missing")
    audio = folder / entry["audio"]
    if not audio.is_file():
        raise ValueError(f"no such recording: {audio}")
    return Utterance(
        audio=audio,
        text=entry.get("text"),
        task=entry.get("task") or "transcribe",
        language=entry.get("language"),
        words=_words(entry.get("words")),
        source=entry.get("source"),
    )


def _words(entries: Any) -> tuple[Word, ...]:
    words = []
    for entry in entries or ():
        match entry:
            case [str(text), int() | float() as start, int() | float() as end] if 0 <= start < end:
                words.append(Word(text, float(start), float(end)))
            case _:
                raise ValueError(f"words must be [word, start, end] with 0 <= start < end in seconds, got {entry!r}")
    if any(later.start < word.start for word, later in pairwise(words)):
        raise ValueError("words must be in the order of their starts")
    return tuple(words)
