"""Where a command of the study runs."""

from __future__ import annotations

from ...devices import accelerator, check_device
from ..errors import InputError


def usable_device(name: str | None) -> str:
    """A device that is here; None: the first GPU, else the CPU.

    Raises:
        InputError: there is no such device.
    """
    name = name or accelerator()
    try:
        check_device(name)
    except ValueError as error:
        raise InputError(str(error)) from error
    return name
