"""CTranslate2's `model.bin`, read as data: version 6 of the format, which its Whisper models come in.

Little-endian: a version, the name and revision of the model's kind, how many variables there are and then each as name,
shape, type, size and values; last come aliases, names for variables that are there already. A string is its length and
its bytes, a NUL at the end counted.

The file is mapped, not loaded, and no size that it states is believed before the bytes are seen to be there.
"""

import math
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

VERSION, KIND = 6, "WhisperSpec"
TYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}
RANK = 3  # of a convolution's weight, the largest that Whisper has


class FileError(ValueError):
    """The file is not what it should be."""


class Reader:
    """What is left of a file."""

    def __init__(self, path: Path) -> None:
        self.path, self.at = path, 0
        try:
            self.bytes = np.asarray(np.memmap(path, np.uint8, "r")) if path.stat().st_size else np.empty(0, np.uint8)
        except OSError as error:
            raise FileError(f"cannot read {path}: {error}") from error

    def refuse(self, what: str) -> NoReturn:
        raise FileError(f"{self.path} is no Whisper model in CTranslate2's format: {what}")

    def values(self, dtype: str, count: int, what: str) -> NDArray:
        size, left = np.dtype(dtype).itemsize * count, len(self.bytes) - self.at
        if size > left:
            self.refuse(f"{what} at byte {self.at} would take {size} bytes, but {left} are left: it may be cut short")
        self.at += size
        return self.bytes[self.at - size : self.at].view(dtype)

    def number(self, dtype: str, what: str) -> int:
        return int(self.values(dtype, 1, what)[0])

    def string(self, what: str) -> str:
        text = self.values("u1", self.number("<u2", f"the length of {what}"), what).tobytes()
        try:
            return text.removesuffix(b"\0").decode()
        except UnicodeDecodeError:
            self.refuse(f"{what} is no text: {text[:40]!r}")


def read_variables(path: Path) -> dict[str, NDArray]:
    """The variables of a model by their names, as views of the file that last as long as it is there.

    Raises:
        FileError: the file cannot be read, is of another kind or version, or has not all that it says.
    """
    file = Reader(path)
    version = file.number("<u4", "the version")
    if version != VERSION:
        file.refuse(f"its version must be {VERSION}, got {version}")
    kind = file.string("the kind of model")
    if kind != KIND:
        file.refuse(f"its kind must be {KIND}, got {kind[:80]!r}")
    file.number("<u4", "the revision")
    variables: dict[str, NDArray] = {}
    for _ in range(file.number("<u4", "the number of variables")):
        name = file.string("a variable's name")
        if name in variables:
            file.refuse(f"{name!r} is there twice")
        variables[name] = _variable(file, name)
    for _ in range(file.number("<u4", "the number of aliases")):
        alias, name = file.string("an alias"), file.string("what an alias stands for")
        if name not in variables:
            file.refuse(f"{alias!r} stands for {name!r}, which is not there")
    if file.at != len(file.bytes):
        file.refuse(f"{len(file.bytes) - file.at} bytes follow its end")
    return variables


def _variable(file: Reader, name: str) -> NDArray:
    rank = file.number("u1", f"the rank of {name}")
    shape = file.values("<u4", rank, f"the shape of {name}").tolist()
    if rank > RANK or 0 in shape:
        file.refuse(f"{name!r} must have at most {RANK} dimensions, none of them 0, got {shape[: RANK + 1]}")
    kind, size = file.number("u1", f"the type of {name}"), file.number("<u4", f"the size of {name}")
    if kind not in TYPES:
        file.refuse(f"the type of {name!r} must be one of {', '.join(map(str, TYPES))}, got {kind}")
    count = math.prod(shape)  # of Python's integers, which do not overflow
    if size != count * np.dtype(TYPES[kind]).itemsize:
        file.refuse(f"{name!r} of shape {shape} and type {TYPES[kind]} cannot have {size} bytes")
    return file.values(TYPES[kind], count, name).reshape(shape)
