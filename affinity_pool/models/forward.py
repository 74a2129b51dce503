"""What stands around a patched model's forward, and the argument it takes besides: which embeddings are audio."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .cache import cache_of
from .calls import enter, leave

if TYPE_CHECKING:
    from .patch import Handle

POSITIONS = "audio_positions"
"""What a patched model's forward takes besides: ``[B, T]`` bool, which of ``inputs_embeds`` are audio."""


class Forward:
    """A model's forward with a :class:`Call` around it. A copy of it is one of the forward inside."""

    __slots__ = ("forward", "handle")

    def __init__(self, handle: Handle, forward: Callable[..., Any]) -> None:
        self.handle, self.forward = handle, forward

    @property
    def __signature__(self) -> inspect.Signature:
        return self.handle.signature

    @torch.compiler.disable(recursive=False)  # what is inside may be compiled; this has nothing to compile
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        handle = self.handle
        if not handle.stands:  # others have put a function of theirs around this one, and keep it
            return self.forward(*args, **kwargs)
        named = {**dict(zip(handle.signature.parameters, args, strict=False)), **kwargs} if args else kwargs.copy()
        kwargs.pop(POSITIONS, None)
        call = handle._begin(named)
        outer = enter(handle, call)
        try:
            output = self.forward(*args, **kwargs)
        finally:
            leave(outer)
        return handle._end(call, output)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.forward, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.forward.__reduce_ex__(protocol)


def with_positions(kind: type[torch.nn.Module]) -> inspect.Signature:
    """Of a class's forward, without self: ``generate`` refuses arguments that the model's forward does not name.

    Not of the model's own forward, around which others may have put a function that names none.
    """
    signature = inspect.signature(kind.forward)
    named = inspect.Parameter(POSITIONS, inspect.Parameter.KEYWORD_ONLY, default=None)
    parameters = list(signature.parameters.values())[1:]
    last = bool(parameters) and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    at = len(parameters) - last
    return signature.replace(parameters=[*parameters[:at], named, *parameters[at:]])


def said_positions(kwargs: dict[str, Any]) -> Tensor | None:
    """The caller's ``audio_positions``, if this call has embeddings that are audio; None if it has none."""
    said, ids, embeds = kwargs.get(POSITIONS), kwargs.get("input_ids"), kwargs.get("inputs_embeds")
    if embeds is None:
        cache = cache_of(kwargs)
        if said is not None and (cache is None or cache.get_seq_length() == 0):
            raise ValueError(
                "audio_positions goes with inputs_embeds, and this call has none: where there are input_ids their "
                "placeholders say what is audio. Without a KV cache generate() cannot go on from inputs_embeds"
            )
        return None  # of a prompt whose decoding this is: generate() hands its arguments to every step
    if ids is not None or (embeds.shape[1] == 1 and said is None):
        return None
    if said is None:
        raise ValueError(
            "inputs_embeds may hold audio, and pooling cannot see where: pass audio_positions, a [batch, tokens] "
            "bool mask of the embeddings that are audio (all False if none is), to the model or to generate(), or "
            "remove the patch"
        )
    if not isinstance(said, Tensor) or said.dtype != torch.bool or said.shape != embeds.shape[:2]:
        given = f"{said.dtype} {list(said.shape)}" if isinstance(said, Tensor) else type(said).__name__
        raise ValueError(f"audio_positions must be a bool tensor of shape {list(embeds.shape[:2])}, got {given}")
    return said if bool(said.any()) else None
