"""TextGrids, Praat's text files of named tiers, in the long and the short format.

Of both formats Praat reads what stands free: numbers, texts in quotes (``""`` is a quote in one) and flags, all else
(``xmin =``, ``intervals [1]:``, after ``!`` the rest of the line) being there for people. So does this reader.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from .files import contents

INTERVALS, POINTS = "IntervalTier", "TextTier"

_FREE = re.compile(r'"((?:[^"]|"")*)"|![^\n]*|(?<!\S)(-?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|<exists>)(?!\S)')


class Interval(NamedTuple):
    """What is written between two times, in seconds."""

    start: float
    end: float
    text: str


def read_textgrid(path: Path) -> dict[str, list[Interval] | None]:
    """The tiers by their names, in order; None is one of points.

    Raises:
        InputError: it cannot be read, is no TextGrid, ends early, or its intervals are out of order or overlap.
    """
    try:
        file = contents(path)
        text = file.decode("utf-16" if file[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        return _tiers(_free(text))
    except StopIteration as error:
        raise InputError(f"cannot read {path}: it ends before it has all that it declares") from error
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {path}: it is neither UTF-8 nor UTF-16 with its mark: {error}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error


def _free(text: str) -> Iterator[str]:
    """What stands free in a file, texts with the quote in front that tells them from numbers."""
    for found in _FREE.finditer(text):
        if found[1] is not None:
            yield '"' + found[1].replace('""', '"')
        elif found[2] is not None:
            yield found[2]


def _tiers(free: Iterator[str]) -> dict[str, list[Interval] | None]:
    if [next(free, ""), next(free, "")] != ['"ooTextFile', '"TextGrid']:
        raise ValueError("it is no TextGrid")
    _number(free), _number(free)
    if next(free) != "<exists>":
        raise ValueError("it has no tiers")
    tiers = [_tier(free) for _ in range(_count(free))]
    again = [name for name, count in Counter(name for name, _ in tiers).items() if count > 1]
    if again:
        raise ValueError(f"it has several tiers called {again[0]!r}")
    return dict(tiers)


def _tier(free: Iterator[str]) -> tuple[str, list[Interval] | None]:
    kind, name = _text(free), _text(free)
    if kind not in (INTERVALS, POINTS):
        raise ValueError(f"a tier is {INTERVALS} or {POINTS}, got {kind[:40]!r}")
    _number(free), _number(free)
    if kind == POINTS:
        for _ in range(_count(free)):
            _number(free), _text(free)
        return name, None
    found = [Interval(_number(free), _number(free), _text(free).strip()) for _ in range(_count(free))]
    for interval in found:
        if not 0 <= interval.start < interval.end < math.inf:
            raise ValueError(
                f"{interval.text!r} is from {interval.start:g} to {interval.end:g} s; 0 <= start < end is needed"
            )
    for one, other in pairwise(found):
        if other.start < one.end:
            raise ValueError(
                f"in the tier {name!r} {other.text!r} begins at {other.start:g} s, before {one.text!r} ends at "
                f"{one.end:g} s"
            )
    return name, found


def _text(free: Iterator[str]) -> str:
    found = next(free)
    if found[0] != '"':
        raise ValueError(f"a text in quotes is expected where {found[:40]} stands")
    return found[1:]


def _number(free: Iterator[str]) -> float:
    found = next(free)
    if found[0] in '"<':
        raise ValueError(f"a number is expected where {found[:40]} stands")
    return float(found)


def _count(free: Iterator[str]) -> int:
    found = _number(free)
    if not found.is_integer() or found < 0:
        raise ValueError(f"a number of tiers or intervals is expected where {found:g} stands")
    return int(found)
