"""The notes of a release: its section of CHANGELOG.md.

python release/notes.py [VERSION]      of the version in affinity_pool/__init__.py if left out
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def version() -> str:
    """Read, not imported: whoever cuts a release need not have torch."""
    code = (ROOT / "affinity_pool" / "__init__.py").read_text(encoding="utf-8")
    (found,) = re.findall(r'^__version__ = "(.+)"$', code, re.MULTILINE)
    return found


def notes(changelog: str, wanted: str) -> str:
    """What the changelog says of a version, without its heading.

    Raises:
        ValueError: it says nothing.
    """
    sections = re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]
    for section in sections:
        heading, _, text = section.partition("\n")
        if heading.split()[:1] == [wanted] and text.strip():
            return text.strip() + "\n"
    raise ValueError(f"CHANGELOG.md has no section '## {wanted}', or nothing in it")


if __name__ == "__main__":
    try:
        print(notes((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), *(sys.argv[1:2] or [version()])), end="")
    except ValueError as error:
        raise SystemExit(str(error)) from None
