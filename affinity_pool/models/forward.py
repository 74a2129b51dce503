"""A patched model's forward: what stands around it, and the pre-hooks that run in it.

Around it a function notes what the call is: a prefill with audio, the continuation of a pooled cache, or neither, and
then every hook steps aside. A hook on the layer of each site pools the hidden states (prefill) or finds the shape of
the pooled keys (continuation) and decides what layers are given from there on; those up to the next site take it over.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from .calls import AUDIO_POSITIONS, Calls, HookResult
from .modules import Changes
from .prefill import pool_at_site, prepare
from .running import Continuation, PooledCall, Prefill, current, enter, leave
from .sites import Site


def install(calls: Calls, changes: Changes) -> None:
    """Put all of a patch on a model."""
    patched, layers = calls.patched, calls.patched.decoder.layers
    changes.wrap(patched.model, partial(Forward, calls, changes))
    changes.hook(patched.decoder, partial(_at_decoder, calls))
    site_of = {site.layer: site for site in patched.sites}
    for index in range(patched.sites[0].layer, len(layers)):
        changes.hook(layers[index], partial(_at_layer, calls, index, site_of.get(index)))
    for module, hook in calls.hooks():
        changes.hook(module, hook)


class Forward:
    """A model's forward with a call around it. A copy of it is one of the forward inside."""

    __slots__ = ("__signature__", "calls", "changes", "forward")

    def __init__(self, calls: Calls, changes: Changes, forward: Callable[..., Any]) -> None:
        self.calls, self.changes, self.forward = calls, changes, forward
        self.__signature__ = _signature(type(calls.patched.model))

    @torch.compiler.disable(recursive=False)  # what is inside may be compiled; this has nothing to compile
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.changes.undone:  # others have put a function of theirs around this one, and keep it
            return self.forward(*args, **kwargs)
        named = {**dict(zip(self.__signature__.parameters, args, strict=False)), **kwargs} if args else kwargs.copy()
        kwargs.pop(AUDIO_POSITIONS, None)
        call = self.calls.begin(named)
        if isinstance(call, Prefill):
            prepare(call)
        outer = enter(call)
        try:
            output = self.forward(*args, **kwargs)
        finally:
            leave(outer)
        if not isinstance(call, PooledCall):
            return output
        _check_passed(call)
        if isinstance(call, Prefill):
            call.patched.records = call.records
        return self.calls.end(call, output)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.forward, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.forward.__reduce_ex__(protocol)


def _signature(kind: type[nn.Module]) -> inspect.Signature:
    """Of a class's forward, without self: ``generate`` refuses arguments that the model's forward does not name.

    Not of the model's own forward, around which others may have put a function that names none.
    """
    signature = inspect.signature(kind.forward)
    named = inspect.Parameter(AUDIO_POSITIONS, inspect.Parameter.KEYWORD_ONLY, default=None)
    parameters = list(signature.parameters.values())[1:]
    last = bool(parameters) and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    at = len(parameters) - last
    return signature.replace(parameters=[*parameters[:at], named, *parameters[at:]])


def _check_passed(call: PooledCall) -> None:
    """A call that hooks have not seen was computed by other layers than were patched."""
    wanted = list(range(call.patched.sites[0].layer, len(call.patched.decoder.layers)))
    if call.passed != wanted and (missed := sorted({*wanted} - {*call.passed})):
        raise RuntimeError(
            f"this call ended without passing {', '.join(f'layer {layer}' for layer in missed[:3])} as patched: "
            "layers were exchanged, or run from code that was compiled or captured without the patch. Patch first "
            "and compile afterwards; torch.compiler.reset() drops what was compiled"
        )


def _at_decoder(calls: Calls, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if current(calls.patched) is None and kwargs.get("inputs_embeds") is not None:
        raise RuntimeError(
            "the decoder of a patched model was called with embeddings, around the model: pooling cannot see which "
            f"of them are audio. Call the {type(calls.patched.model).__name__}, with audio_positions if it is to be "
            "given embeddings, or remove the patch. If you did, others have put back a forward from before the patch: "
            "remove it and patch again"
        )


def _at_layer(
    calls: Calls, index: int, site: Site | None, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> HookResult:
    """Pool or go on at a site, and give each layer what holds since the last one."""
    call = current(calls.patched)
    if not isinstance(call, PooledCall):
        return None
    if site is not None and isinstance(call, Prefill):
        args = (pool_at_site(calls, call, site, args[0], kwargs), *args[1:])
    elif isinstance(call, Continuation) and index in call.states:
        calls.continue_from(call, index, args[0], kwargs)
    call.passed.append(index)
    if not call.override:
        return None
    kwargs.update(call.override)
    return args, kwargs
