"""What a run was given, in digests: names stay while what they name is corrected, replaced or trained on.

Small files count by their contents, large ones (weights) by size, time and a sample of their contents.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .manifest import Utterance

SMALL = 16 * 2**20  # bytes read whole: hours of compressed speech, and every tokenizer
SAMPLES, SAMPLE = 64, 4096  # of a larger file


def of_texts(utterances: Sequence[Utterance]) -> str:
    """Of all that is known of recordings."""
    return digest(
        [one.id, one.text, one.task, one.language, one.metric, [list(word) for word in one.words]] for one in utterances
    )


def of_audio(utterances: Sequence[Utterance]) -> str:
    """Of the recordings themselves: contents of files, fingerprints of data sets."""
    return digest(
        of_file(one.audio) if isinstance(one.audio, Path) else getattr(one.audio, "identity", None)
        for one in utterances
    )


def of_folder(folder: Path) -> str:
    """Of a folder's files: a checkpoint, or word times."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return digest([path.relative_to(folder).as_posix(), of_file(path)] for path in files)


def of_file(path: Path) -> Any:
    """Of one file, as JSON; None where there is none, or none that can be read."""
    try:
        if not path.is_file():
            return None
        about = path.stat()
        with path.open("rb") as file:
            if about.st_size <= SMALL:
                return [about.st_size, hashlib.sha256(file.read()).hexdigest()]
            sample = hashlib.sha256()
            for part in range(SAMPLES):
                file.seek((about.st_size - SAMPLE) * part // (SAMPLES - 1))
                sample.update(file.read(SAMPLE))
            return [about.st_size, about.st_mtime_ns, sample.hexdigest()]
    except (OSError, ValueError):
        return None


def of_word_times(source: str | None) -> dict[str, str]:
    """Of a folder of TextGrids, for a run's plan; other sources of word times are part of the recordings."""
    folder = None if source is None else Path(source)
    return {"word times": of_folder(folder)} if folder is not None and folder.is_dir() else {}


def of_judge(spec: str) -> str:
    """Of the file that a judge ``module:function`` is in."""
    file = getattr(sys.modules.get(spec.partition(":")[0]), "__file__", None)
    return digest([None if file is None else of_file(Path(file))])


def digest(values: Iterable[Any]) -> str:
    """Of JSON values, in their order."""
    found = hashlib.sha256()
    for value in values:
        found.update(json.dumps(value).encode() + b"\n")
    return found.hexdigest()[:32]
