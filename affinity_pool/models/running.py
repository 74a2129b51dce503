"""Patched models, and their forwards under way. Each belongs to its thread, and is gone when it returns or raises.

Hooks ask :func:`current` what the call is that they run in: a prefill with audio, the continuation of a pooled cache,
or one with nothing to do. None means that a patched decoder was called around its model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .keys import SiteState
from .losses import Targets
from .settings import Attention, Logits, Positions
from .sites import Layer, Site
from .stats import SiteRecord

PooledBy = tuple[tuple[Layer, ...], Positions]
"""The layers of the sites of a patch, and its positions: a cache is continued by any patch that has the same."""


@dataclass(eq=False)
class Patched:
    """A model with a patch on it: what its calls and hooks go by."""

    model: Any
    decoder: Any
    features: str
    audio_token_id: Callable[[Any], int]
    """As ``features``, of the model's family."""
    attends: str | None
    """As those two."""
    sites: tuple[Site, ...]
    """In the order of their layers."""
    positions: Positions
    attention: Attention
    logits: Logits
    records: list[SiteRecord] = field(default_factory=list)
    """Of the last prefill with audio to end, in any thread."""

    @property
    def layers(self) -> list[int]:
        """Those of the sites, of a decoder whose layers are pooled between."""
        return [site.layer for site in self.sites if isinstance(site.layer, int)]

    def drawn(self) -> dict[Layer, Site]:
        """The sites of one prefill, by layer, in their order: what has a range has a number."""
        return {site.layer: site.drawn(self.model.training) for site in self.sites}

    @property
    def pooled_by(self) -> PooledBy:
        """What a patch must have in common with this one to continue a cache that this one pooled."""
        return tuple(site.layer for site in self.sites), self.positions


@dataclass
class Call:
    """A forward of a patched model; of this very class if there is nothing to do in it."""

    patched: Patched


@dataclass
class PooledCall(Call):
    """A call with something to do."""

    passed: list[int] = field(default_factory=list, kw_only=True)
    """Layers whose hooks have run."""
    records: list[SiteRecord] = field(default_factory=list, kw_only=True)
    """Of the sites pooled at so far."""


@dataclass
class LayerCall(PooledCall):
    """A call whose layers, from some site on, have other columns than the caller."""

    states: dict[int, SiteState] = field(default_factory=dict, kw_only=True)
    """Of the sites at which columns have merged, by layer."""
    override: dict[str, Any] = field(default_factory=dict, kw_only=True)
    """What layers get instead of the caller's, from the last site on."""
    positions: Tensor | None = field(default=None, kw_only=True)
    """``[..., B or 1, T]`` of the columns entering the next site (in a continuation: of the caller's)."""


@dataclass
class Prefill(LayerCall):
    """A call that carries audio, as far as the layers have come."""

    audio: Tensor
    """``[B, T]`` bool, audio tokens among the columns entering the next site."""
    mask: Tensor | None
    """``[B, T]`` the caller's attention mask."""
    lengths: Tensor | None = None
    """``[B]`` int32, columns of each row that are not padding; None: all are."""
    tokens: list[int] | None = None
    """The same as the host knows it; None before the first site, unless that keeps a share."""
    runs: list[list[int]] | None = None
    """Lengths of each row's stretches of audio tokens among them, in order, where the next site keeps a share."""
    shift: Tensor | None = None
    """``[B, 1]`` how many of the caller's columns the sites so far took away, where positions follow; else None."""
    sizes: Tensor | None = None
    """``[B, T]`` int32, tokens that each column entering the next site stands for; None: one each, or nobody asks."""
    either_side: bool = False
    """Whether the batch may be padded on the right as well: nothing is generated from it."""
    left_padded: bool = True
    last_logits: int = 0
    """How many of the last columns have logits; 0: all."""
    targets: Targets | None = None
    """What the model's loss reads, where it computes one."""
    went: Tensor | None = None
    """``[B, L]`` the pooled column that each of the caller's went to; None: each its own, or nobody asks."""
    caller_audio: Tensor = field(init=False)
    """``audio`` among the caller's columns."""
    sites: dict[Layer, Site] = field(init=False)
    """As drawn for this call."""

    def __post_init__(self) -> None:
        self.caller_audio, self.sites = self.audio, self.patched.drawn()


@dataclass
class Continuation(LayerCall):
    """A call on top of a pooled cache."""

    own_mask: Tensor | None = None
    """``[B, queries]`` bool, the mask of this call's own tokens; None: none is padding."""


class _Running(threading.local):
    """Of this thread, innermost last: a forward may be started inside another one, of the same model or another."""

    def __init__(self) -> None:
        self.calls: list[Call] = []


_running = _Running()


def enter(call: Call) -> list[Call]:
    """From here on hooks of the patch run in ``call``, in this thread; :func:`leave` takes what is returned."""
    outer = _running.calls
    _running.calls = [*outer, call]
    return outer


def leave(outer: list[Call]) -> None:
    """End the innermost call, however it ended, and those inside it that never did."""
    _running.calls = outer


def current(patched: Patched) -> Call | None:
    """The innermost call of this patched model in this thread; None outside of any."""
    for call in reversed(_running.calls):
        if call.patched is patched:
            return call
    return None


def in_backward() -> bool:
    """Whether this thread runs a backward pass: layers that run in it are run again (activation checkpointing)."""
    return torch._C._current_graph_task_id() != -1


def innermost() -> Patched | None:
    """The patched model that is running in this thread; the innermost if several are."""
    return _running.calls[-1].patched if _running.calls else None
