"""A patched model's forward: a function around it notes what the call is, for the pre-hooks that run in it.

A prefill with audio, the continuation of a pooled cache, or neither, and then every hook steps aside.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from .calls import Calls
from .modules import Changes
from .prefill import prepare
from .running import PooledCall, Prefill, enter, leave


def install(calls: Calls, changes: Changes) -> None:
    """Put all of a patch on a model."""
    changes.wrap(calls.patched.model, partial(Forward, calls, changes))
    for module, hook in calls.hooks():
        changes.hook(module, hook)


class Forward:
    """A model's forward with a call around it. A copy of it is one of the forward inside."""

    __slots__ = ("__signature__", "calls", "changes", "forward")

    def __init__(self, calls: Calls, changes: Changes, forward: Callable[..., Any]) -> None:
        self.calls: Calls = calls
        self.changes: Changes = changes
        self.forward: Callable[..., Any] = forward
        self.__signature__: inspect.Signature = _signature(type(calls.patched.model), calls.takes)

    @torch.compiler.disable(recursive=False)  # what is inside may be compiled; this has nothing to compile
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if args and args[0] is self.calls.patched.model:  # bound to it: see Changes._has_wrapped
            args = args[1:]
        if self.changes.undone:  # others have put a function of theirs around this one, and keep it
            return self.forward(*args, **kwargs)
        named = {**dict(zip(self.__signature__.parameters, args, strict=False)), **kwargs} if args else kwargs.copy()
        for name in self.calls.takes:
            kwargs.pop(name, None)
        self.changes.follow(self.calls.patched.decoder.layers)
        call = self.calls.begin(named)
        targets = None
        if isinstance(call, Prefill):
            prepare(call)
            if (targets := call.targets) is not None:
                args, kwargs = (), {name: named[name] for name in named if name not in self.calls.takes}
                kwargs |= targets.handed
        outer = enter(call)
        try:
            output = self.forward(*args, **kwargs)
        finally:
            leave(outer)
            if targets is not None:
                targets.restore()
        if not isinstance(call, PooledCall):
            return output
        _check_passed(call, self.calls.to_pass())
        if call.records:
            call.patched.records = call.records
        return self.calls.end(call, output)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.forward, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.forward.__reduce_ex__(protocol)


def _signature(kind: type[nn.Module], more: Iterable[str]) -> inspect.Signature:
    """Of a class's forward, without self and with ``more``: ``generate`` refuses arguments that forward does not name.

    Not of the model's own forward, around which others may have put a function that names none.
    """
    signature = inspect.signature(kind.forward)
    named = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in more]
    parameters = list(signature.parameters.values())[1:]
    last = bool(parameters) and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    at = len(parameters) - last
    return signature.replace(parameters=[*parameters[:at], *named, *parameters[at:]])


def _check_passed(call: PooledCall, to_pass: Iterable[int]) -> None:
    """A call that hooks have not seen was computed by other layers than were patched."""
    wanted = list(to_pass)
    if call.passed != wanted and (missed := sorted({*wanted} - {*call.passed})):
        raise RuntimeError(
            f"this call ended without passing {', '.join(f'layer {layer}' for layer in missed[:3])} as patched: "
            "layers were exchanged, or run from code that was compiled or captured without the patch. Patch first "
            "and compile afterwards; torch.compiler.reset() drops what was compiled"
        )
