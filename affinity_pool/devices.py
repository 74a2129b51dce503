"""Which device of this machine is used."""

from __future__ import annotations

import torch


def accelerator() -> str:
    """``cuda`` where there is a GPU, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(name: str) -> None:
    """Raise ValueError, in words, where there is no such device."""
    try:
        torch.empty(0, device=name).cpu()  # "meta" holds nothing
    except (RuntimeError, AssertionError, ImportError) as error:  # torch without CUDA asserts that it has none
        raise ValueError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
