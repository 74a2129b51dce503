"""Sites as users write them, and as results tell them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..models import Site
from ..models.sites import Positions, resolve
from .errors import InputError


@dataclass(frozen=True)
class NamedSites:
    """Sites under the name they were asked for."""

    name: str
    sites: tuple[Site, ...]
    positions: Positions | None = None


def parse_sites(spec: str, depth: int) -> NamedSites:
    """A preset, a JSON file or a folder that holds one, or ``LAYER:THRESHOLD:WINDOW[,...]`` as ``0:0.9:1,7:0.85:3``.

    Raises:
        InputError: it is none of these, or a decoder of ``depth`` layers has no such sites.
    """
    try:
        if ":" in spec and not Path(spec).exists():
            sites, positions = resolve([_parse_site(part) for part in spec.split(",")], depth)
            return NamedSites(spec, sites, positions)
        sites, positions = resolve(spec, depth)
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(f"sites {spec!r}: {error}") from error
    return NamedSites(
        format_sites(sites) if Path(spec).exists() else f"{spec} ({format_sites(sites)})", sites, positions
    )


def _parse_site(text: str) -> Site:
    try:
        layer, threshold, window = text.split(":")
        numbers = int(layer), float(threshold), int(window)
    except ValueError as error:
        raise ValueError(f"{text!r} is not LAYER:THRESHOLD:WINDOW, as in 7:0.85:3: {error}") from error
    return Site(*numbers)


def check_sites(sites: str | None, depth: int) -> None:
    """Raise an :class:`InputError` unless a decoder of so many layers has these sites; None: the model's own."""
    if sites is None:
        return
    try:
        resolve(sites, depth)
    except (OSError, ValueError) as error:
        raise InputError(str(error)) from error


def format_sites(sites: Sequence[Site]) -> str:
    """Sites as :func:`parse_sites` takes them."""
    return ",".join(f"{site.layer}:{site.threshold:g}:{site.window}" for site in sites)


def sites_json(sites: Sequence[Site]) -> list[dict[str, Any]]:
    """Sites as ``affinity_pool.json`` and results hold them."""
    return [{"layer": site.layer, "threshold": site.threshold, "window": site.window} for site in sites]


def site_name(site: Site) -> str:
    """What a site is called in tables and pictures."""
    return f"layer {site.layer}" if site.layer else "input"
