"""Where a command runs."""

from __future__ import annotations

import torch

from ..errors import InputError


def accelerator() -> str:
    """``cuda`` where there is a GPU, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def usable_device(name: str | None) -> str:
    """A device that is here; None: the first GPU, else the CPU.

    Raises:
        InputError: there is no such device.
    """
    name = name or accelerator()
    try:
        torch.empty(0, device=name).cpu()  # "meta" holds nothing
    except (RuntimeError, AssertionError, ImportError) as error:  # torch without CUDA asserts that it has none
        raise InputError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return name
