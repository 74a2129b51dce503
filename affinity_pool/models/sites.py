"""Where a model is pooled and how strongly: sites, the paper's presets, and ``affinity_pool.json`` in a checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from torch import Tensor

from ..checks import check_rule, check_share
from ..pooling import pool_padded, pool_padded_to
from ..results import PooledPadded

Positions = Literal["keep", "compact"]

FILE = "affinity_pool.json"

THRESHOLD, WINDOW = 0.8, 3  # of a site that is given neither

Reduction = Callable[[Tensor, Tensor | None, Tensor], PooledPadded]
"""A method of one's own: takes what :meth:`Site.reduce` takes, returns what it returns; see docs/extending.md."""


@dataclass(frozen=True)
class Site:
    """Pool the hidden states that enter decoder layer ``layer``; layer 0 is the language model's input.

    By a threshold, as the paper does, or to a share of the tokens: then how many are left is known beforehand.
    """

    layer: int
    threshold: float | None = None
    """None: 0.8, or not used, where ``keep`` is given."""
    window: int | None = None
    """None: 3, or not used, where ``keep`` is given."""
    reduction: Reduction | None = None
    """What is done there instead of Affinity Pooling, to which threshold and window belong."""
    keep: float | None = None
    """The share of each run of audio tokens that is left, in (0, 1], as in :func:`affinity_pool.pool_to`."""

    def __post_init__(self) -> None:
        if isinstance(self.layer, bool) or not isinstance(self.layer, int):
            raise TypeError(f"layer must be an int (0 is the input site), got {self.layer!r}")
        if self.layer < 0:
            raise ValueError(f"layer must be 0 (the input site) or more, got {self.layer}")
        if self.reduction is not None and not callable(self.reduction):
            raise TypeError(f"reduction must be a function of (x, lengths, mergeable) or None, got {self.reduction!r}")
        if self.keep is not None:
            self._check_keep(self.keep)
            return
        threshold = THRESHOLD if self.threshold is None else self.threshold
        window = WINDOW if self.window is None else self.window
        check_rule(threshold, window)
        float(threshold)  # raises OverflowError: an integer that no float can hold
        object.__setattr__(self, "threshold", threshold)
        object.__setattr__(self, "window", window)

    def _check_keep(self, keep: float) -> None:
        for name in ("threshold", "window", "reduction"):
            if (given := getattr(self, name)) is not None:
                raise ValueError(
                    f"keep={keep!r} and {name}={given!r} are two rules for one site: give a share to keep, or a "
                    "threshold and a window, or a reduction"
                )
        if type(keep) is int and keep == 1:
            keep = 1.0  # as JSON may write it; there are no counts here that it could be taken for
        check_share(keep)
        object.__setattr__(self, "keep", keep)

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
        if self.keep is not None:
            return pool_padded_to(x, self.keep, lengths, mergeable=mergeable, left_padded=True)
        assert self.threshold is not None
        assert self.window is not None
        return pool_padded(
            x, lengths, mergeable=mergeable, threshold=self.threshold, window=self.window, left_padded=True
        )


DEPTH = 32
PRESETS = {
    "conservative": (Site(0, 0.9, window=1), Site(29, 0.8, window=3)),
    "aggressive": (Site(0, 0.8, window=1), Site(29, 0.7, window=3)),
    # The shares that the paper's thresholds leave: 78.64 % at the input and 14.91 % in the end. Of the conservative
    # thresholds it does not tell what they leave.
    "aggressive-counted": (Site(0, keep=0.7864), Site(29, keep=0.1896)),
}
"""The paper's Dual Affinity Pooling on Qwen2-Audio, whose decoder has ``DEPTH`` layers."""


def preset(name: str, depth: int) -> tuple[Site, ...]:
    """A preset's sites for a decoder of ``depth`` layers: the deep one moves with the depth."""
    at_input, deep = PRESETS[name]
    layer = depth * deep.layer // DEPTH
    return (at_input, replace(deep, layer=layer)) if layer else (at_input,)


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
    """Read ``{"sites": [{"layer": 0, "threshold": 0.9, "window": 1}, ...], "positions": "keep"}``.

    A site may also be ``{"layer": 0, "keep": 0.5}``.
    """
    file = Path(path)
    if file.is_dir():
        file = file / FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"sites={str(path)!r} is neither a preset ({', '.join(PRESETS)}) nor a JSON file nor a folder with {FILE}"
        )
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=_once)
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


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, each of whose keys stands there once."""
    found = dict(pairs)
    if len(found) < len(pairs):
        again = next(key for at, (key, _) in enumerate(pairs) if key in dict(pairs[:at]))
        raise ValueError(f"{again!r} stands there more than once")
    return found


def _unreadable(file: Path, reason: object) -> ValueError:
    return ValueError(
        f"{file}: {reason}; expected {{'sites': [{{'layer': 0, 'threshold': 0.9, 'window': 1}} or "
        "{'layer': 0, 'keep': 0.5}, ...], 'positions': 'keep'}"
    )


def _site(entry: Any) -> Site:
    rules = {"layer", "threshold", "window"}, {"layer", "keep"}
    if not isinstance(entry, dict) or set(entry) not in rules or None in entry.values():
        given = repr(entry)[:80]
        raise ValueError(f"a site has layer, threshold and window, or layer and keep, got {given}")
    return Site(**entry)
