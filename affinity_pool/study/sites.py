"""Sites as users write them, and as results tell them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..models import MEMORY, Layer, Site
from ..models.settings import Attention, Pooling, resolve
from ..models.sites import number
from .errors import InputError

KEEP = "keep="


@dataclass(frozen=True)
class NamedSites:
    """Where and how to pool, under the name it was asked for."""

    name: str
    pooling: Pooling


def parse_sites(spec: str, depth: int | None, attention: Attention | None = None) -> NamedSites:
    """A preset, a JSON file or a folder that holds one, or sites with commas between them.

    Of a range, as a model that was trained with one may have, it is the end that leaves the fewest tokens. A site is
    ``LAYER:THRESHOLD:WINDOW``, or ``LAYER:keep=SHARE``: ``0:0.9:1,7:keep=0.2``, ``memory:0.96:1``. The
    attention is the one asked for, else what the file says, else plain; the name tells which unless it is plain.

    Raises:
        InputError: it is none of these, or a decoder of ``depth`` layers has no such sites.
    """
    try:
        if ":" in spec and not Path(spec).exists():
            pooling = resolve([_parse_site(part) for part in spec.split(",")], depth).fixed()
            return _named(format_sites(pooling.sites), pooling, attention)
        pooling = resolve(spec, depth).fixed()
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(f"sites {spec!r}: {error}") from error
    shown = format_sites(pooling.sites)
    return _named(shown if Path(spec).exists() else f"{spec} ({shown})", pooling, attention)


def _named(name: str, pooling: Pooling, attention: Attention | None) -> NamedSites:
    attention = attention or pooling.attention or "plain"
    return NamedSites(with_attention(name, attention), replace(pooling, attention=attention))


def with_attention(name: str, attention: Attention) -> str:
    """A name that tells the attention, unless it is plain."""
    return name if attention == "plain" else f"{name}, {attention}"


def _parse_site(text: str) -> Site:
    layer, *rule = [part.strip() for part in text.split(":")]
    options: dict[str, float]
    number: Layer
    try:
        number = MEMORY if layer == MEMORY else int(layer)
        if len(rule) == 1 and rule[0].startswith(KEEP):
            options = {"keep": float(rule[0].removeprefix(KEEP))}
        else:
            threshold, window = rule
            options = {"threshold": float(threshold), "window": int(window)}
    except ValueError as error:
        raise ValueError(
            f"{text!r} is not LAYER:THRESHOLD:WINDOW or LAYER:{KEEP}SHARE, as in 7:0.85:3, 7:{KEEP}0.5, {MEMORY}:0.96:1"
        ) from error
    return Site(number, **options)  # type: ignore[arg-type]  # mypy takes every value for any of the keys


def check_sites(sites: str | None, depth: int | None) -> None:
    """Raise an :class:`InputError` unless a decoder of so many layers has these sites; None: the model's own."""
    if sites is not None:
        parse_sites(sites, depth)


def format_sites(sites: Sequence[Site]) -> str:
    """Sites as :func:`parse_sites` takes them, to the last digit."""
    return ",".join(
        f"{site.layer}:{KEEP}{site.keep}"
        if site.threshold is None
        else f"{site.layer}:{_short(number(site.threshold))}:{site.window}"
        for site in sites
    )


def _short(number: float) -> str:
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)


def site_name(site: Site) -> str:
    """What a site is called in tables and pictures."""
    return MEMORY if site.layer == MEMORY else f"layer {site.layer}" if site.layer else "input"


def rule_name(site: Site) -> str:
    """What is merged at a site, for tables and pictures."""
    return f"cosine ≥ {site.threshold:g}, window {site.window}" if site.keep is None else f"{site.keep:.4g} is kept"
