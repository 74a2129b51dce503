"""What may be asked for: ``affinity_pool`` in a model's config, and in a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from reprlib import repr as short
from typing import Any

KEY = "affinity_pool"
"""Of a model's config (``config.json`` or ``--hf-overrides``), and of a request's ``mm_processor_kwargs``."""

SCOPE = "audio_kwargs"
"""What vLLM makes part of the hash of audio alone: images beside it are the same whatever is left of the audio."""

BOUNDS = ("min", "default", "max")


@dataclass(frozen=True)
class Settings:
    """Shares of the audio tokens that are left, in (0, 1]: what a request gets that says nothing, and may ask for."""

    default: float = 1.0
    least: float = 0.0
    """A request may ask for no less; 0: for any share."""
    most: float = 1.0

    def of_request(self, request: Mapping[str, Any]) -> float:
        """The share for a request's ``mm_processor_kwargs``.

        Raises:
            ValueError: what is under the key is not ``{"keep": share}``, or out of bounds; or the key is elsewhere.
        """
        if scope := misplaced(request):
            raise ValueError(f"{KEY} belongs into mm_processor_kwargs itself, it was found in {scope}")
        if not isinstance(request.get(SCOPE, {}), Mapping):
            raise ValueError(f"{SCOPE} of mm_processor_kwargs must be a mapping, got {short(request[SCOPE])}")
        if request.get(KEY) is None:
            return self.default
        keep = _as_share(_keep(request[KEY], "a request's mm_processor_kwargs"), "keep")
        if not self.least <= keep <= self.most:
            raise ValueError(f"{KEY}: keep must be in {self.least:g}..{self.most:g} on this server, got {keep:g}")
        return keep


def misplaced(kwargs: Mapping[str, Any]) -> str | None:
    """Where in ``mm_processor_kwargs`` the key lies inside something else; None: nowhere."""
    for scope, value in kwargs.items():
        if scope != KEY and isinstance(value, Mapping) and KEY in value:
            return scope
    return None


def of_config(config: Any) -> Settings | None:
    """What a model's config says under the key: ``{"keep": 0.8}`` or ``{"keep": {"min": 0.4, "default": 0.8}}``.

    Bounds are ``min``, ``max`` and ``default``, each may be left out: 0 (any share), 1, and ``max``.

    Returns:
        None where the config says nothing.

    Raises:
        ValueError: it says something else.
    """
    written = getattr(config, KEY, None)
    if written is None:
        return None
    keep = _keep(written, "the model's config")
    if not isinstance(keep, Mapping):
        return Settings(_as_share(keep, "keep"))
    if not keep or not set(keep) <= set(BOUNDS):
        raise ValueError(f"{KEY}: keep has bounds, of {', '.join(BOUNDS)}, got {short(dict(keep))}")
    most = _as_share(keep.get("max", 1.0), "keep's max")
    least = _as_share(keep["min"], "keep's min") if "min" in keep else 0.0
    default = _as_share(keep.get("default", most), "keep's default")
    if not least <= default <= most:
        raise ValueError(f"{KEY}: keep's min, default and max must rise, got {least:g}, {default:g} and {most:g}")
    return Settings(default, least, most)


def _keep(written: Any, where: str) -> Any:
    if not isinstance(written, Mapping) or set(written) != {"keep"}:
        raise ValueError(f'{KEY}: expected {{"keep": share}} in {where}, got {short(written)}')
    return written["keep"]


def _as_share(keep: Any, name: str) -> float:
    """A share as JSON has it: 1 is 1.0, for nobody counts rows here."""
    is_number = isinstance(keep, Real) and not isinstance(keep, bool)
    if not (is_number and 0 < keep <= 1):
        raise ValueError(
            f"{KEY}: {name} is the share of audio tokens that is left, above 0 and up to 1, got {short(keep)}"
        )
    return float(keep)


def settled(request: Mapping[str, Any], keep: float) -> dict[str, Any]:
    """A request's ``mm_processor_kwargs`` with the share that is used where vLLM hashes it, unless all is kept."""
    kwargs = without_share(request)
    if keep < 1:
        kwargs[SCOPE] = {**kwargs.get(SCOPE, {}), KEY: {"keep": keep}}
    return kwargs


def share(kwargs: Mapping[str, Any]) -> float | None:
    """The share in what :func:`settled` returned; None if all is kept."""
    scope = kwargs.get(SCOPE, {})
    return scope[KEY]["keep"] if KEY in scope else None


def without_share(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """``mm_processor_kwargs`` as the model's own processor may see them, a request's or those :func:`settled`."""
    left = {name: value for name, value in kwargs.items() if name != KEY}
    if KEY in left.get(SCOPE, {}):
        left[SCOPE] = {name: value for name, value in left[SCOPE].items() if name != KEY}
        if not left[SCOPE]:
            del left[SCOPE]
    return left
