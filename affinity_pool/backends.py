"""Which implementations of the op exist here, and in words why one does not."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import torch

from . import ops  # noqa: F401  (the schema must stand before the compiled library adds to it)


@dataclass(frozen=True)
class Backend:
    """One implementation of ``torch.ops.affinity_pool``."""

    name: str
    available: bool
    devices: str
    """Device types it serves."""
    detail: str
    """What it was built for, or why it is missing."""

    def __str__(self) -> str:
        return f"{self.name:<10} {'yes' if self.available else 'no':<4} {self.devices:<5} {self.detail}"


LIBRARY = Path(__file__).with_name("_C.abi3.so")


def _load() -> tuple[ctypes.CDLL | None, str]:
    """Load the compiled kernels, which register themselves with the dispatcher, or say why not.

    The library is no Python module: building it needs no Python headers and one file serves every Python.
    """
    if not LIBRARY.exists():
        why = "not built: the install found no C++ compiler or no torch; reinstall with --no-build-isolation and g++"
        return None, why
    try:
        torch.ops.load_library(LIBRARY)
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        return None, f"built, but does not load: {error}"
    library.affinity_pool_cpu_instruction_set.restype = ctypes.c_char_p
    return library, ""


_library, _why_not = _load()


def backends() -> list[Backend]:
    """Every implementation of the op, fastest first: available or not, for which devices, and what or why."""
    instruction_set = _library.affinity_pool_cpu_instruction_set().decode() if _library else ""
    cpu_detail = f"C++ kernels, using {instruction_set}" if _library else _why_not
    return [
        Backend("cpu", _library is not None, "cpu", cpu_detail),
        Backend("reference", True, "any", "the paper's loop in torch; serves every device without a kernel of its own"),
    ]
