"""Which implementations of the op exist here, in words why one does not, and which of them runs.

The compiled library registers its kernels with the dispatcher when it loads, for the CPU and, if it was built with
nvcc, for CUDA. Python registers what stands in for them: the Triton kernels on CUDA, the reference anywhere.
"""

from __future__ import annotations

import ctypes
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import ops, triton_kernels


@dataclass(frozen=True)
class Backend:
    """One implementation of ``torch.ops.affinity_pool``."""

    name: str
    """As :func:`affinity_pool.use` takes it."""
    available: bool
    """Whether it can serve here."""
    devices: str
    """Device types it serves."""
    detail: str
    """What it was built for, or why it is missing."""

    def __str__(self) -> str:
        return f"{self.name:<10} {'yes' if self.available else 'no':<4} {self.devices:<5} {self.detail}"


_here = Path(__file__).parent
# An install's is _C; a build for the Kernels Hub has one that is named as its namespace.
LIBRARY = next(_here.glob("*.abi3.so"), _here / "_C.abi3.so")


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
    return library, ""


_library, _why_not = _load()


def _text(function: str) -> str:
    """What a function of the library says, or nothing if it has no such function."""
    if not hasattr(_library, function):
        return ""
    call = getattr(_library, function)
    call.restype = ctypes.c_char_p
    return call().decode()


_architectures = _text("affinity_pool_cuda_architectures")
_release = int(_text("affinity_pool_cuda_release") or 0)


def backends() -> list[Backend]:
    """Every implementation of the op, fastest first: available or not, for which devices, and what or why.

    Example:
        >>> from affinity_pool import backends
        >>> [backend.name for backend in backends()]
        ['cuda', 'triton', 'cpu', 'reference']
        >>> print(backends()[-1])
        reference  yes  any   the paper's loop in torch; serves every device without a kernel of its own
    """
    no_triton = triton_kernels.missing()
    return [
        Backend("cuda", *_cuda()),
        Backend("triton", no_triton is None, "cuda", no_triton or "Triton kernels, for NVIDIA and AMD"),
        Backend("cpu", _library is not None, "cpu", _why_not or f"C++ kernels, using {_instruction_set()}"),
        Backend("reference", True, "any", "the paper's loop in torch; serves every device without a kernel of its own"),
    ]


def _cuda() -> tuple[bool, str, str]:
    if _library is None:
        return False, "cuda", _why_not
    if not _architectures:
        return False, "cuda", "not built: the install found no nvcc; reinstall with nvcc on the PATH or CUDA_HOME set"
    if torch.version.cuda is None or not torch.cuda.is_available():
        return False, "cuda", f"built for {_architectures}, but torch sees no NVIDIA GPU here"
    if (driver := _driver()) < _release:
        need = f"which the driver here, of CUDA {driver}, does not run: update it, or build with an nvcc of {driver}"
        return False, "cuda", f"built for {_architectures} by CUDA {_release}, {need}"
    gpus = [torch.cuda.get_device_capability(device) for device in range(torch.cuda.device_count())]
    unserved = ", ".join(f"GPU {i} (sm_{a}{b})" for i, (a, b) in enumerate(gpus) if not _runs_on((a, b)))
    if not any(map(_runs_on, gpus)):
        return False, "cuda", f"built for {_architectures}, which no GPU here runs: {unserved}"
    return True, "cuda", f"CUDA kernel, built for {_architectures}" + (f"; not for {unserved}" if unserved else "")


def _driver() -> int:
    """The major version of CUDA up to which the driver runs code. The wheel may be newer than torch and its CUDA."""
    ask = getattr(torch._C, "_cuda_getDriverVersion", None)  # private; torch.cuda asks it too
    return _release if ask is None else int(ask()) // 1000


def _runs_on(capability: tuple[int, int]) -> bool:
    """Whether the library has code for a GPU: machine code of its generation and no later, or PTX no later."""
    for major, minor, its_own, ptx in re.findall(r"sm_(\d+)(\d)(a?)( and PTX)?", _architectures):
        built = (int(major), int(minor))
        if built == capability or (not its_own and built <= capability and (ptx or built[0] == capability[0])):
            return True
    return False


def _instruction_set() -> str:
    return _text("affinity_pool_cpu_instruction_set")


Implementation = Callable[..., Any]


def _triton(op: str) -> Implementation:
    implementation: Implementation = getattr(triton_kernels, op)
    return implementation


def _triton_or_reference(op: str) -> Implementation:
    """Decides when it is called: to ask for a GPU on import would bind every process to one."""

    def serve(*arguments: Any) -> Any:
        implementation = _triton(op) if triton_kernels.missing() is None else ops.REFERENCE[op]
        return implementation(*arguments)

    return serve


_current = ""
_gpus_are_older = False  # than all code in the library, or their driver is
_replacements: torch.library.Library | None = None


def _replace(name: str) -> None:
    """Put before the compiled implementations those that this choice asks for, and take away the last choice's."""
    global _current, _replacements
    if _replacements is not None:
        _replacements._destroy()  # what it covered is back
    _replacements = torch.library.Library(ops.library.ns, "IMPL")
    chosen: dict[str, Callable[[str], Implementation]] = {}
    if name == "reference":
        chosen = {"CPU": ops.REFERENCE.__getitem__, "CUDA": ops.REFERENCE.__getitem__}
    elif name == "triton":
        chosen = {"CUDA": _triton}
    elif not _architectures or _gpus_are_older:
        chosen = {"CUDA": _triton_or_reference}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*Overriding a previously registered kernel")
        for key, implementation in chosen.items():
            for op in ops.REFERENCE:
                _replacements.impl(op, implementation(op), key)
    _current = name


_replace("auto")


def _look_at_the_gpus() -> None:
    """To ask for a GPU on import would bind every process to one: torch calls this when it first does."""
    global _gpus_are_older
    gpus = map(torch.cuda.get_device_capability, range(torch.cuda.device_count()))
    _gpus_are_older = _driver() < _release or not any(map(_runs_on, gpus))
    if _gpus_are_older and _current == "auto":
        _replace("auto")


if _architectures and torch.version.cuda is not None:
    torch.cuda._lazy_call(_look_at_the_gpus)


def use(name: str) -> AbstractContextManager[None]:
    """Choose the implementation behind the ops, in this process, on the devices that it serves.

    Args:
        name: one of :func:`backends`, or ``"auto"``, the default: on each device the first that is available.

    Returns:
        A context manager that restores, on exit, what was used before. The choice is made by the call itself, so
        ``use("triton")`` alone will do.

    Raises:
        ValueError: there is no such backend, or it is not available here; the message says why.

    Example:
        >>> import torch
        >>> from affinity_pool import pool, use
        >>> with use("reference"):
        ...     pool(torch.ones(4, 8)).counts.tolist()
        [4]
    """
    entry = next((b for b in backends() if b.name == name), None)
    if name != "auto" and entry is None:
        raise ValueError(f"name must be auto, {', '.join(b.name for b in backends())}; got {name!r}")
    if entry is not None and not entry.available:
        raise ValueError(f"{name} is not available: {entry.detail}")
    before = _current
    _replace(name)

    @contextmanager
    def restore() -> Iterator[None]:
        try:
            yield
        finally:
            _replace(before)

    return restore()


def serving(device: torch.device) -> str:
    """Name of the backend that a call on this device runs on now."""
    if _current == "reference" or device.type not in ("cpu", "cuda"):
        return "reference"
    if device.type == "cpu":
        return "cpu" if _library is not None else "reference"
    if _architectures and _current != "triton" and not _gpus_are_older:
        return "cuda"
    return "triton" if triton_kernels.missing() is None else "reference"
