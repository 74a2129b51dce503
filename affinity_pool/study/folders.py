"""The folder a run owns: ``run.json`` says what it is, and only a run that is the same may go on in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import InputError


def is_begun(folder: Path, facts: dict[str, Any]) -> bool:
    """Whether ``folder`` holds the beginning of the run with these ``facts``; otherwise nobody's: :func:`begin` it.

    Raises:
        InputError: it holds a run with other settings.
    """
    file = folder / "run.json"
    if not file.exists():
        return False
    there = json.loads(file.read_text(encoding="utf-8"))
    if there != facts:
        differing = sorted(key for key in {*there, *facts} if there.get(key) != facts.get(key))
        raise InputError(
            f"{folder} holds a run with other settings ({', '.join(differing)}): give another --out, or remove it"
        )
    return True


def begin(folder: Path, facts: dict[str, Any]) -> None:
    """Make the folder this run's, once what else it begins with is there."""
    (folder / "run.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
