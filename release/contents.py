"""What a wheel is made of: how many bytes of Python, of code for the CPU, and of code for each GPU."""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

MADE = "made.json"
"""Beside the wheel in dist/: from what, and with what, it was made."""
LIBRARY = "affinity_pool/_C.abi3.so"
CONTAINER = 0xBA55ED50
"""Begins what nvcc packs of one source file: a header of 16 bytes, then entries, each with a header of its own."""


def parts(wheel: Path) -> dict[str, Any]:
    """Bytes of the wheel and, unpacked, of its library and what that consists of."""
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        inside = {entry.filename: entry.file_size for entry in archive.infolist()}
        packed = {entry.filename: entry.compress_size for entry in archive.infolist()}
        library = Path(archive.extract(LIBRARY, folder))
        sections = sizes(library)
        offset, size = sections.get(".nv_fatbin", (0, 0))
        gpu = device_code(library.read_bytes()[offset : offset + size])
    return {
        "bytes": wheel.stat().st_size,
        "python": sum(size for name, size in inside.items() if name.endswith(".py")),
        "library": inside[LIBRARY],
        "library_in_the_wheel": packed[LIBRARY],
        "gpu": dict(sorted(gpu.items())),
        "cpu_and_rest": inside[LIBRARY] - size,
    }


def sizes(library: Path) -> dict[str, tuple[int, int]]:
    """Offset and size of each section."""
    told = subprocess.run(["readelf", "-SW", library], capture_output=True, text=True, check=True).stdout
    rows = re.findall(r"\] (\.\S+) +\S+ +[0-9a-f]+ ([0-9a-f]+) ([0-9a-f]+)", told)
    return {name: (int(offset, 16), int(size, 16)) for name, offset, size in rows}


def device_code(section: bytes) -> dict[str, int]:
    """Bytes of code for each GPU, as packed, by ``sm_80`` or ``PTX 90``."""
    found: dict[str, int] = defaultdict(int)
    at = section.find(struct.pack("<I", CONTAINER))
    while at >= 0:
        _, _, header, length = struct.unpack_from("<IHHQ", section, at)
        entry, end = at + header, at + header + length
        while entry < end:
            kind, _, own_header, payload = struct.unpack_from("<HHIQ", section, entry)
            (architecture,) = struct.unpack_from("<I", section, entry + 28)
            found[f"PTX {architecture}" if kind == 1 else f"sm_{architecture}"] += payload
            entry += own_header + payload
        at = section.find(struct.pack("<I", CONTAINER), end)
    return dict(found)


def in_words(found: dict[str, Any]) -> str:
    """The sizes in one sentence."""
    gpu = ", ".join(f"{size / 1000:.0f} kB for {name}" for name, size in found["gpu"].items()) or "none for GPUs"
    return (
        f"The wheel is {found['bytes'] / 1e6:.2f} MB: {found['library'] / 1e6:.2f} MB of library "
        f"({found['library_in_the_wheel'] / 1e6:.2f} MB packed; device code {gpu}; "
        f"{found['cpu_and_rest'] / 1e6:.2f} MB for the CPU, CUDA's runtime included), "
        f"and {found['python'] / 1e6:.2f} MB of Python."
    )
