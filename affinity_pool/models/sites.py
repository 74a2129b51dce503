"""Where a model is pooled and how strongly: sites, the paper's presets, and ``affinity_pool.json`` in a checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from torch import Tensor

from ..checks import check_rule
from ..pooling import pool_padded
from ..results import PooledPadded

Positions = Literal["keep", "compact"]

FILE = "affinity_pool.json"


Reduction = Callable[[Tensor, Tensor | None, Tensor], PooledPadded]
"""A method of one's own: takes what :meth:`Site.reduce` takes, returns what it returns; see docs/extending.md."""


@dataclass(frozen=True)
class Site:
    """Pool the hidden states that enter decoder layer ``layer``; layer 0 is the language model's input."""

    layer: int
    threshold: float = 0.8
    window: int = 3
    reduction: Reduction | None = None
    """What is done there instead of Affinity Pooling, to which threshold and window belong."""

    def __post_init__(self) -> None:
        if isinstance(self.layer, bool) or not isinstance(self.layer, int):
            raise TypeError(f"layer must be an int (0 is the input site), got {self.layer!r}")
        if self.layer < 0:
            raise ValueError(f"layer must be 0 (the input site) or more, got {self.layer}")
        check_rule(self.threshold, self.window)
        float(self.threshold)  # raises OverflowError: an integer that no float can hold
        if self.reduction is not None and not callable(self.reduction):
            raise TypeError(f"reduction must be a function of (x, lengths, mergeable) or None, got {self.reduction!r}")

    def reduce(self, x: Tensor, lengths: Tensor | None, mergeable: Tensor) -> PooledPadded:
        """What goes on from here.

        Args:
            x: ``[B, T, D]`` what enters the layer, padded on the left.
            lengths: ``[B]`` int32, the rows of each sequence that are not padding; None: all are.
            mergeable: ``[B, T]`` bool, the audio tokens among the rows.

        Returns:
            As :func:`affinity_pool.pool_padded` with ``left_padded=True``. Text is passed on as it is, in order. A row
            that goes nowhere has -1 in ``segment_ids``; what is passed on has the rotary phase of the first row with
            its id.
        """
        if self.reduction is not None:
            return self.reduction(x, lengths, mergeable)
        return pool_padded(
            x, lengths, mergeable=mergeable, threshold=self.threshold, window=self.window, left_padded=True
        )


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
