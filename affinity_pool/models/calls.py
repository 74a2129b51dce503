"""The forwards of patched models that are under way. Each belongs to its thread, and is gone when it returns or raises.

Hooks ask :func:`current` what the call is that they run in: a prefill with audio, the continuation of a pooled cache,
or one with nothing to do. None means that a patched decoder was called around its model.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .stats import SiteRecord

if TYPE_CHECKING:
    from .cache import PooledCache
    from .patch import Handle


@dataclass
class Call:
    """A forward of a patched model; of this very class if there is nothing to do in it."""

    override: dict[str, Any] = field(default_factory=dict, kw_only=True)
    """What layers get instead of the caller's, from the last site on."""
    passed: list[int] = field(default_factory=list, kw_only=True)
    """Layers whose hooks have run."""


@dataclass
class Prefill(Call):
    """A call that carries audio, as far as the layers have come."""

    audio: Tensor
    """``[B, T]`` bool, audio tokens among the columns entering the next site."""
    mask: Tensor | None
    caller_audio: Tensor
    lengths: Tensor | None = None
    before: list[int] | None = None
    positions: Tensor | None = None
    """``[..., B or 1, T]`` what the rotary embedding was given, of the columns entering the next site."""
    shift: Tensor | None = None
    """``[B, 1]`` how many of the caller's columns the sites so far took away, where positions follow; else None."""
    records: list[SiteRecord] = field(default_factory=list)


@dataclass
class Continuation(Call):
    """A call on top of a pooled cache."""

    cache: PooledCache
    turn: Tensor | None
    positions: Tensor | None = None
    """``[..., B or 1, queries]`` what the rotary embedding was given."""


class _Running(threading.local):
    """Of this thread, innermost last: a forward may be started inside another one, of the same model or another."""

    def __init__(self) -> None:
        self.calls: list[tuple[Handle, Call]] = []


_running = _Running()


def enter(handle: Handle, call: Call) -> list[tuple[Handle, Call]]:
    """From here on hooks of ``handle`` run in ``call``, in this thread; :func:`leave` takes what is returned."""
    outer = _running.calls
    _running.calls = [*outer, (handle, call)]
    return outer


def leave(outer: list[tuple[Handle, Call]]) -> None:
    """End the innermost call, however it ended, and those inside it that never did."""
    _running.calls = outer


def current(handle: Handle) -> Call | None:
    """The innermost call of this patch in this thread; None outside of any."""
    for owner, call in reversed(_running.calls):
        if owner is handle:
            return call
    return None


def innermost() -> Handle | None:
    """The patch whose model is running in this thread; the innermost if several are."""
    return _running.calls[-1][0] if _running.calls else None
