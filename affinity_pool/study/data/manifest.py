"""Manifests: JSON lines, one recording each.

    {"audio": "clip.flac", "text": "five nine", "task": "transcribe", "language": "en", "metric": "wer",
     "words": [["five", 0.13, 0.76], ["nine", 0.87, 1.56]], "source": "where it is from"}

``audio`` is a path relative to the manifest; everything else is optional. ``text`` is the right answer to ``task``,
which is also the prompt unless the command is given another, and ``language`` is that of the text. ``metric`` says how
answers are scored, where the task does not. ``words`` are the words spoken, with start and end in seconds. Other keys
are ignored.

A line that says something else is an error before anything runs. A line whose recording is missing or cannot be used
is not: :meth:`Utterance.load` says so, and a run counts it as a problem of that recording.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from .. import InputError
from ..metrics.tasks import METRICS
from .audio import Audio, load_audio

SHOWN = 10  # bad lines named in one error
SHOWN_LENGTH = 300  # characters of each
LONGEST = 1e9  # seconds at which a word may end
TASK = "transcribe"  # of recordings that name none


class Word(NamedTuple):
    """A spoken word and where it is, in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Utterance:
    """One recording and what is known of it."""

    id: str
    """Unique in its data set, and the same whenever that is opened."""
    audio: Path | Callable[[], Path | bytes]
    """The recording, or what fetches it when it is wanted."""
    text: str | None = None
    """The right answer to ``task``."""
    task: str = TASK
    language: str | None = None
    """Of ``text``, as a code such as "en" or "zh-CN"."""
    words: tuple[Word, ...] = ()
    """The words spoken, in the order of their starts."""
    source: str | None = None
    metric: str | None = None
    """One of ``METRICS``; None: what the task is usually scored by."""

    def load(self, rate: int) -> Audio:
        """The recording at ``rate`` samples a second.

        Raises:
            InputError: it is missing, unreadable, too short, silent or not finite. Bad data raises nothing else.
        """
        if isinstance(self.audio, Path):
            return load_audio(self.audio, rate)
        found = self.audio()
        return load_audio(found, rate, None if isinstance(found, Path) else self.id)


def read_manifest(path: Path) -> list[Utterance]:
    """Read a manifest whole, or raise an :class:`InputError` that names every bad line (the first ten).

    An utterance's id is the path of its recording without suffix; of those that share it "/task" is added, and "#line"
    where they share that too.
    """
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"the manifest {path} is no file")
        lines = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except (OSError, ValueError) as error:  # a ValueError is a byte that is no UTF-8, or a NUL in the name
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read the manifest {path}: {error}; it must be JSON lines in UTF-8") from error
    entries: dict[int, dict[str, Any]] = {}
    bad = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entries[number] = _checked(json.loads(line))
        except (ValueError, RecursionError) as error:
            bad.append(f"  line {number}: {shortened(str(error))}")
    if bad:
        more = [f"  and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
        raise InputError("\n".join([f"{path}: {len(bad)} of {len(lines)} lines cannot be used", *bad[:SHOWN], *more]))
    if not entries:
        raise InputError(f"the manifest {path} is empty")
    ids = unique(
        [_printable(str(PurePosixPath(entry["audio"]).with_suffix(""))) for entry in entries.values()],
        [f"/{entry['task']}" for entry in entries.values()],
        [f"#{number}" for number in entries],
    )
    return [
        Utterance(id, **{**entry, "audio": path.parent / entry["audio"]})
        for id, entry in zip(ids, entries.values(), strict=True)
    ]


def _printable(name: str) -> str:
    """A name whose bytes are no UTF-8 as text, for files and pages hold text."""
    return name.encode("utf-8", "backslashreplace").decode()


def unique(names: Sequence[str], *suffixes: Sequence[str]) -> list[str]:
    """``names`` with as many of their suffixes as it takes to tell each from the others.

    The last suffixes must differ from each other.
    """
    names = list(names)
    for suffix in suffixes:
        count = Counter(names)
        names = [name + end if count[name] > 1 else name for name, end in zip(names, suffix, strict=True)]
    return names if len(set(names)) == len(names) else unique(names, suffixes[-1])


def _checked(entry: Any) -> dict[str, Any]:
    """The fields of an utterance, ``audio`` as it is written."""
    if not isinstance(entry, dict):
        raise ValueError(f"expected a JSON object, got {type(entry).__name__}: a line is one recording")
    for key in ("audio", "text", "task", "language", "source", "metric"):
        if not isinstance(entry.get(key, ""), str) and not (entry[key] is None and key != "audio"):
            raise ValueError(f"{key} must be a string, got {shortened(repr(entry[key]))}")
        _check_text(key, entry.get(key))
    if not entry.get("audio", "").strip("/."):
        raise ValueError("audio, the path of the recording, is missing")
    if entry.get("metric") not in (None, *METRICS):
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {entry['metric']!r}")
    return {
        "audio": entry["audio"],
        "text": entry.get("text"),
        "task": entry.get("task") or TASK,
        "language": entry.get("language"),
        "words": _words(entry.get("words")),
        "source": entry.get("source"),
        "metric": entry.get("metric"),
    }


def _check_text(key: str, text: str | None) -> None:
    """Refuse half a character, as a cut or twice encoded text holds: no tokenizer and no file can take it.

    In a path it is a byte of a name that is no UTF-8, which is one.
    """
    wrong = next((c for c in text or "" if "\ud800" <= c <= "\udfff"), None)
    if wrong is not None and not (key == "audio" and "\udc80" <= wrong <= "\udcff"):
        raise ValueError(f"{key} holds half a character, \\u{ord(wrong):04x}, which is no text: {text!r}")
    if key == "audio" and "\0" in (text or ""):
        raise ValueError(f"audio holds a NUL, which no path has: {text!r}")


def shortened(text: str) -> str:
    """What fits in a message."""
    return text if len(text) <= SHOWN_LENGTH else text[: SHOWN_LENGTH - 3] + "..."


def _words(entries: Any) -> tuple[Word, ...]:
    if not isinstance(entries, list | None):
        raise ValueError(f"words must be a list, got {shortened(repr(entries))}")
    words = []
    for entry in entries or ():
        match entry:
            case [str(text), int() | float() as start, int() | float() as end] if _is_span(start, end):
                _check_text("words", text)
                words.append(Word(text, float(start), float(end)))
            case _:
                raise ValueError(f"words must be [word, start, end] with 0 <= start < end in seconds, got {entry!r}")
    if any(later.start < word.start for word, later in pairwise(words)):
        raise ValueError("words must be in the order of their starts")
    return tuple(words)


def _is_span(start: float, end: float) -> bool:
    """Whether both are seconds that a float holds; JSON's true and numbers of a thousand digits are not."""
    return not isinstance(start, bool) and not isinstance(end, bool) and 0 <= start < end < LONGEST
