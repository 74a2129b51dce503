"""Where a model is pooled and how strongly: sites, the paper's presets, and ``affinity_pool.json`` in a checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args

from torch import Tensor

from ..checks import check_rule
from ..pooling import pool_padded
from ..results import PooledPadded

Positions = Literal["keep", "compact"]

FILE = "affinity_pool.json"


class Reduce(Protocol):
    """What may stand in for :func:`affinity_pool.pool_padded` at a site: same arguments, same result.

    Rows that are not ``mergeable`` must come back as they are, in order. ``segment_ids`` is -1 for a row that goes
    nowhere, and a kept row's rotary phase is that of the first row with its id: a reduction that drops rows marks the
    dropped ones -1.
    """

    def __call__(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        *,
        mergeable: Tensor | None = None,
        threshold: float = 0.8,
        window: int = 3,
        left_padded: bool = False,
    ) -> PooledPadded: ...


@dataclass(frozen=True)
class Site:
    """Pool the hidden states that enter decoder layer ``layer``; layer 0 is the language model's input."""

    layer: int
    threshold: float = 0.8
    window: int = 3
    reduce: Reduce = pool_padded

    def __post_init__(self) -> None:
        if isinstance(self.layer, bool) or not isinstance(self.layer, int):
            raise TypeError(f"layer must be an int (0 is the input site), got {self.layer!r}")
        if self.layer < 0:
            raise ValueError(f"layer must be 0 (the input site) or more, got {self.layer}")
        check_rule(self.threshold, self.window)
        float(self.threshold)  # raises OverflowError: an integer that no float can hold


# (threshold at the input, threshold at the deep layer) of the paper's Dual Affinity Pooling on Qwen2-Audio.
PRESETS = {"conservative": (0.9, 0.8), "aggressive": (0.8, 0.7)}


def preset(name: str, depth: int) -> tuple[Site, ...]:
    """The paper's two sites for a decoder of ``depth`` layers: window 1 at the input, 3 at layer 29 of 32."""
    at_input, deep = PRESETS[name]
    layer = depth * 29 // 32
    sites = (Site(0, at_input, window=1), Site(layer, deep, window=3))
    return sites if layer else sites[:1]


def resolve(sites: object, depth: int) -> tuple[tuple[Site, ...], Positions | None]:
    """Turn what ``patch`` was given into sites sorted by layer, and the positions its file asks for, if any."""
    positions: Positions | None = None
    if isinstance(sites, str) and sites in PRESETS:
        found = preset(sites, depth)
    elif isinstance(sites, (str, os.PathLike)):
        found, positions = load(sites)
    elif isinstance(sites, Iterable):
        found = tuple(sites)
    else:
        raise TypeError(f"sites must be a preset, a list of Site or a path, got {sites!r}")
    for site in found:
        if not isinstance(site, Site):
            raise TypeError(f"sites must hold affinity_pool.Site objects, got {site!r}")
        if site.layer >= depth:
            raise ValueError(f"site at layer {site.layer}, but this model's decoder has layers 0 to {depth - 1}")
    if not found:
        raise ValueError("sites is empty: name at least one Site, or do not patch")
    if len({site.layer for site in found}) < len(found):
        raise ValueError(f"two sites at one layer: {[site.layer for site in found]}; keep one Site for each layer")
    return tuple(sorted(found, key=lambda site: site.layer)), positions


def check_positions(positions: object) -> Positions:
    """One of those there are."""
    if positions not in get_args(Positions):
        raise ValueError(f"positions must be 'keep' or 'compact', got {positions!r}")
    return cast(Positions, positions)


def load(path: str | os.PathLike[str]) -> tuple[tuple[Site, ...], Positions | None]:
    """Read ``{"sites": [{"layer": 0, "threshold": 0.9, "window": 1}, ...], "positions": "keep"}``."""
    file = Path(path)
    if file.is_dir():
        file = file / FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"sites={str(path)!r} is neither a preset ({', '.join(PRESETS)}) nor a JSON file nor a folder with {FILE}"
        )
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8-sig"))
        if not isinstance(content, dict):
            raise ValueError(f"got {type(content).__name__}")
        if unknown := set(content) - {"sites", "positions"}:
            raise ValueError(f"unknown key {sorted(unknown)[0]!r}")
        if not isinstance(content["sites"], list):
            raise ValueError(f"sites must be a list, got {type(content['sites']).__name__}")
        positions = content.get("positions")
        return tuple(map(_site, content["sites"])), None if positions is None else check_positions(positions)
    except KeyError as error:
        raise _unreadable(file, f"{error} is missing") from error
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, reason: object) -> ValueError:
    return ValueError(
        f"{file}: {reason}; expected {{'sites': [{{'layer': 0, 'threshold': 0.9, 'window': 1}}, ...], "
        "'positions': 'keep'}"
    )


def _site(entry: Any) -> Site:
    if not isinstance(entry, dict) or set(entry) != {"layer", "threshold", "window"}:
        given = sorted(entry) if isinstance(entry, dict) else repr(entry)[:80]
        raise ValueError(f"a site has layer, threshold and window, got {given}")
    return Site(**entry)
