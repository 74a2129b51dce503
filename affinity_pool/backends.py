"""Which implementations of the op exist here, and in words why one does not."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

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


def _load() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("affinity_pool._C"), ""
    except ModuleNotFoundError:
        return None, "not built: the install found no C++ compiler; install g++ and reinstall with --no-build-isolation"
    except (ImportError, OSError) as error:
        return None, f"built, but does not load: {error}"


compiled, _why_not = _load()


def backends() -> list[Backend]:
    """Every implementation of the op, fastest first: available or not, for which devices, and what or why."""
    cpu_detail = f"C++ kernels, using {compiled.cpu_instruction_set()}" if compiled else _why_not
    return [
        Backend("cpu", compiled is not None, "cpu", cpu_detail),
        Backend("reference", True, "any", "the paper's loop in torch; serves every device without a kernel of its own"),
    ]
