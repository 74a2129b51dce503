"""What is read from outside, whole: regular files up to a size, so that nothing waits for ever or fills the memory."""

from __future__ import annotations

import os
import stat
from pathlib import Path

LARGEST = 1 << 28
"""Bytes of a file: 256 MiB, more than two hours of 16-bit samples at 16 kHz."""


def contents(path: Path) -> bytes:
    """All bytes of a file.

    Raises:
        OSError: it cannot be read, is a directory, a pipe or a device, or larger than ``LARGEST``.
        ValueError: no file can have this path.
    """
    kind = os.stat(path)
    if not stat.S_ISREG(kind.st_mode):
        raise OSError("Is a directory" if stat.S_ISDIR(kind.st_mode) else "is a pipe or a device, not a file")
    if kind.st_size > LARGEST:
        raise OSError(f"it has {kind.st_size} bytes; at most {LARGEST} are read")
    return path.read_bytes()


def exists(path: Path) -> bool:
    """Whether anything has this path; nothing has one that is too long or holds a NUL."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
