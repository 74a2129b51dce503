"""What is asked of a patch: sites, positions, attention; the paper's presets, and ``affinity_pool.json``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from .sites import MEMORY, Layer, Site

Positions = Literal["keep", "compact"]
Attention = Literal["plain", "proportional"]
Logits = Literal["pooled", "expanded"]

FILE = "affinity_pool.json"

DEPTH, _DEEP = 32, 29
PRESETS = {
    "conservative": (Site(0, 0.9, window=1), Site(_DEEP, 0.8, window=3)),
    "aggressive": (Site(0, 0.8, window=1), Site(_DEEP, 0.7, window=3)),
    # The shares that the paper's thresholds leave: 78.64 % at the input and 14.91 % in the end. Of the conservative
    # thresholds it does not tell what they leave.
    "aggressive-counted": (Site(0, keep=0.7864), Site(_DEEP, keep=0.1896)),
}
"""The paper's Dual Affinity Pooling on Qwen2-Audio, whose decoder has ``DEPTH`` layers."""


def preset(name: str, depth: int) -> tuple[Site, ...]:
    """A preset's sites for a decoder of ``depth`` layers: the deep one moves with the depth."""
    at_input, deep = PRESETS[name]
    layer = depth * _DEEP // DEPTH
    return (at_input, replace(deep, layer=layer)) if layer else (at_input,)


@dataclass(frozen=True)
class Pooling:
    """Where and how a model is pooled. None, of positions and attention: nobody has said."""

    sites: tuple[Site, ...]
    """In the order of their layers."""
    positions: Positions | None = None
    attention: Attention | None = None

    def fixed(self) -> Pooling:
        """As in evaluation mode: of each range the end that leaves the fewest tokens."""
        return replace(self, sites=tuple(site.drawn(training=False) for site in self.sites))


OF_MEMORY = Pooling((Site(MEMORY, 0.96, window=1),), attention="proportional")
"""The preset ``"memory"``, for Whisper; see docs/study/README.md for what it leaves, and what the errors are."""


def resolve(sites: object, depth: int | None) -> Pooling:
    """What ``patch`` was given for ``sites``, of a decoder of ``depth`` layers; None: of an encoder-decoder model."""
    if isinstance(sites, str) and sites in PRESETS:
        if depth is None:
            raise ValueError(f"the preset {sites!r} is for speech language models: {_MEMORY_ONLY}")
        pooling = Pooling(preset(sites, depth))
    elif sites == MEMORY:
        pooling = OF_MEMORY
    elif isinstance(sites, (str, os.PathLike)):
        pooling = load(sites)
    elif isinstance(sites, Iterable):
        pooling = Pooling(tuple(sites))
    else:
        raise TypeError(f"sites must be a preset, a list of Site or a path, got {sites!r}")
    found = pooling.sites
    for site in found:
        if not isinstance(site, Site):
            raise TypeError(f"sites must hold affinity_pool.Site objects, got {site!r}")
        _check_layer(site.layer, depth)
    if not found:
        raise ValueError("sites is empty: name at least one Site, or do not patch")
    if len({site.layer for site in found}) < len(found):
        raise ValueError(f"two sites at one layer: {[site.layer for site in found]}; keep one Site for each layer")
    return replace(pooling, sites=tuple(sorted(found, key=lambda site: site.layer)))


_MEMORY_ONLY = (
    f"an encoder-decoder model has one site, Site({MEMORY!r}, ...), what its decoder attends to, and a preset of its "
    f"own, {MEMORY!r}"
)


def _check_layer(layer: Layer, depth: int | None) -> None:
    if depth is None:
        if layer != MEMORY:
            raise ValueError(f"site at layer {layer}, but {_MEMORY_ONLY}")
    elif layer == MEMORY:
        raise ValueError(
            f"site at {MEMORY!r}, but this model has no encoder that its decoder attends to: its audio tokens enter "
            f"the decoder, at layer 0, which has layers 0 to {depth - 1}"
        )
    elif layer >= depth:
        raise ValueError(f"site at layer {layer}, but this model's decoder has layers 0 to {depth - 1}")


def check_positions(positions: object) -> Positions:
    """One of those there are."""
    return cast(Positions, _one_of("positions", positions, get_args(Positions)))


def check_attention(attention: object) -> Attention:
    """One of those there are."""
    return cast(Attention, _one_of("attention", attention, get_args(Attention)))


def check_logits(logits: object) -> Logits:
    """One of those there are."""
    return cast(Logits, _one_of("logits", logits, get_args(Logits)))


def _one_of(name: str, given: object, allowed: tuple[str, ...]) -> object:
    if given not in allowed:
        raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, got {given!r}")
    return given


def load(path: str | os.PathLike[str]) -> Pooling:
    """Read ``{"sites": [{"layer": 0, "threshold": 0.9, "window": 1}, ...]}``, and ``"positions"``, ``"attention"``.

    A site may also be ``{"layer": 0, "keep": 0.5}``, and its layer ``"memory"``.
    """
    file = Path(path)
    if file.is_dir():
        file = file / FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"sites={str(path)!r} is neither a preset ({', '.join([*PRESETS, MEMORY])}) nor a JSON file nor a folder "
            f"with {FILE}"
        )
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=_once)
        if not isinstance(content, dict):
            raise ValueError(f"got {type(content).__name__}")
        if unknown := set(content) - {"sites", "positions", "attention"}:
            raise ValueError(f"unknown key {sorted(unknown)[0]!r}")
        if not isinstance(content["sites"], list):
            raise ValueError(f"sites must be a list, got {type(content['sites']).__name__}")
        positions, attention = content.get("positions"), content.get("attention")
        return Pooling(
            tuple(map(_site, content["sites"])),
            None if positions is None else check_positions(positions),
            None if attention is None else check_attention(attention),
        )
    except KeyError as error:
        raise _unreadable(file, f"{error} is missing") from error
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _unreadable(file, error) from error


def save(pooling: Pooling, folder: str | os.PathLike[str]) -> Path:
    """Write what :func:`load` reads, and return the file: ``affinity_pool.json`` in ``folder``, which may be new."""
    content = {"sites": sites_json(pooling.sites), "positions": pooling.positions, "attention": pooling.attention}
    file = Path(folder) / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(FILE + ".part")
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(part, file)  # all of it or what was there before
    return file


def sites_json(sites: Iterable[Site]) -> list[dict[str, Any]]:
    """Sites as ``affinity_pool.json`` and results hold them; one with a reduction of its own cannot be."""
    entries = []
    for site in sites:
        if site.reduction is not None:
            raise ValueError(f"the site at layer {site.layer} has a reduction of its own, which JSON cannot hold")
        rule = {"threshold": site.threshold, "window": site.window} if site.keep is None else {"keep": site.keep}
        entries.append({"layer": site.layer, **rule})
    return entries


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
        "{'layer': 0, 'keep': 0.5}, ...], 'positions': 'keep', 'attention': 'plain'}"
    )


def _site(entry: Any) -> Site:
    rules = {"layer", "threshold", "window"}, {"layer", "keep"}
    if not isinstance(entry, dict) or set(entry) not in rules or None in entry.values():
        given = repr(entry)[:80]
        raise ValueError(f"a site has layer, threshold and window, or layer and keep, got {given}")
    return Site(**entry)
