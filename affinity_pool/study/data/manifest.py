"""Manifests: JSON lines, one recording each::

    {"audio": "clip.flac", "text": "five nine", "task": "transcribe", "language": "en", "metric": "wer",
     "words": [["five", 0.13, 0.76], ["nine", 0.87, 1.56]], "source": "where it is from"}

``audio`` is a path relative to the manifest; everything else is optional. ``text`` is the right answer to ``task``,
which is also the prompt unless the command is given another, and ``language`` is that of the text. ``metric`` says how
answers are scored, where the task does not. ``words`` are the words spoken, with start and end in seconds. Other keys
are ignored.

A line that says something else is an error before anything runs. A line whose recording is missing or cannot be used
is not: :meth:`affinity_pool.study.data.Utterance.load` says so, and a run counts it as a problem of that recording.
"""

from __future__ import annotations

import json
import reprlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ..errors import InputError
from ..metrics.tasks import METRICS
from .audio import LONGEST, Audio, load_audio
from .files import contents

SHOWN = 10  # bad lines named in one error
LONG = 80  # characters of a value that messages quote whole
TASK = "transcribe"  # of recordings that name none


class Word(NamedTuple):
    """A spoken word and where it is, in seconds."""

    text: str
    """As it is spelt."""
    start: float
    """Seconds from the recording's beginning."""
    end: float
    """The same."""


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
    """What is asked, and the prompt unless a command is given another."""
    language: str | None = None
    """Of ``text``, as a code such as "en" or "zh-CN"."""
    words: tuple[Word, ...] = ()
    """The words spoken, in the order of their starts."""
    source: str | None = None
    """Where the recording is from."""
    metric: str | None = None
    """One of ``METRICS``; None: what the task is usually scored by."""

    def load(self, rate: int) -> Audio:
        """The recording at ``rate`` samples a second.

        Raises:
            InputError: it is missing or cannot be used (see :func:`.load_audio`). Bad data raises nothing else.
        """
        source = self.audio if isinstance(self.audio, Path) else self.audio()
        return load_audio(source, rate, None if isinstance(source, Path) else self.id)


def read_manifest(path: str | Path) -> list[Utterance]:
    """Read a manifest whole, or raise an :class:`InputError` that names every bad line (the first ten).

    An utterance's id is the path of its recording without suffix; of those that share it "/task" is added, and "#line"
    where they share that too.

    Example:
        >>> from affinity_pool.study.data import read_manifest
        >>> read_manifest("examples/tiny-lslm/recordings/manifest.jsonl")[0].words[0]
        Word(text='five', start=0.13, end=0.76)
    """
    path = Path(path)
    try:
        lines = contents(path).decode("utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read the manifest {path}: it is not UTF-8: {error}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the manifest {path}: {error}") from error
    entries: dict[int, dict[str, Any]] = {}
    bad = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entries[number] = _checked(json.loads(line, object_pairs_hook=_once, parse_constant=_no_number))
        except RecursionError:
            bad.append(f"  line {number}: its brackets are nested too deeply")
        except ValueError as error:
            bad.append(f"  line {number}: {error}")
    if bad:
        more = [f"  and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
        form = "" if entries else ': every line must be a JSON object such as {"audio": "clip.wav"}'
        head = f"{path}: {len(bad)} of {len(lines)} lines cannot be used{form}"
        raise InputError("\n".join([head, *bad[:SHOWN], *more]))
    if not entries:
        raise InputError(f"the manifest {path} is empty")
    ids = unique(
        [_as_text(str(PurePosixPath(entry["audio"]).with_suffix(""))) for entry in entries.values()],
        [f"/{entry['task']}" for entry in entries.values()],
        [f"#{number}" for number in entries],
    )
    return [
        Utterance(id, **{**entry, "audio": path.parent / entry["audio"]})
        for id, entry in zip(ids, entries.values(), strict=True)
    ]


def _as_text(name: str) -> str:
    """A name whose bytes are no UTF-8, for files and pages hold text."""
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


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, each of whose keys stands there once."""
    again = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if again:
        raise ValueError(f"{_short(again[0])} stands there more than once")
    return dict(pairs)


def _no_number(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")


def _short(value: Any) -> str:
    """A value as messages quote it."""
    return reprlib.repr(value) if not isinstance(value, str) or len(value) > LONG else repr(value)


def _checked(entry: Any) -> dict[str, Any]:
    """The fields of an utterance, ``audio`` as it is written."""
    if not isinstance(entry, dict):
        raise ValueError(f"expected a JSON object, got {type(entry).__name__}")
    for key in ("audio", "text", "task", "language", "source", "metric"):
        value = entry.get(key, "")
        if not isinstance(value, str) and not (value is None and key != "audio"):
            raise ValueError(f"{key} must be a string, got {_short(value)}")
        _encodable(key, value or "")
    if PurePosixPath(entry.get("audio", "")).name in ("", ".."):
        raise ValueError("audio, the path of the recording, is missing")
    if "\0" in entry["audio"]:
        raise ValueError(f"audio must be a path, got {_short(entry['audio'])}, which has a NUL in it")
    if entry.get("metric") not in (None, *METRICS):
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {_short(entry['metric'])}")
    return {
        "audio": entry["audio"],
        "text": entry.get("text"),
        "task": entry.get("task") or TASK,
        "language": entry.get("language"),
        "words": _words(entry.get("words")),
        "source": entry.get("source"),
        "metric": entry.get("metric"),
    }


def _encodable(key: str, value: str) -> None:
    """No tokenizer, file or page takes half of a surrogate pair; in a path it is a byte that is no UTF-8."""
    try:
        value.encode("utf-8", "surrogateescape" if key == "audio" else "strict")
    except UnicodeEncodeError as error:
        raise ValueError(f"{key} has a character that is no text: {value[error.start]!r}, a lone surrogate") from error


def _words(entries: Any) -> tuple[Word, ...]:
    if not isinstance(entries, list | None):
        raise ValueError(f"words must be a list, got {_short(entries)}")
    words = [_word(entry) for entry in entries or ()]
    if any(later.start < word.start for word, later in pairwise(words)):
        raise ValueError("words must be in the order of their starts")
    return tuple(words)


def _word(entry: Any) -> Word:
    match entry:
        case [str(text), int() | float() as start, int() | float() as end] if (
            not isinstance(start, bool) and not isinstance(end, bool) and 0 <= start < end <= LONGEST
        ):
            _encodable("words", text)
            return Word(text, float(start), float(end))
    raise ValueError(
        f"words must be [word, start, end] with 0 <= start < end <= {LONGEST} in seconds, got {_short(entry)}"
    )
