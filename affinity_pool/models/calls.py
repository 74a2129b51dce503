"""How a family's code calls its decoder layers: what a patch asks to tell calls apart and to carry on after a site."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from .running import Call, Continuation, Patched, PooledCall, Prefill

AUDIO_POSITIONS = "audio_positions"
"""What a patched model's forward takes besides: ``[B, T]`` bool, which of ``inputs_embeds`` are audio."""

HookResult = tuple[tuple[Any, ...], dict[str, Any]] | None
Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], HookResult]
"""Of a module, its positional and its keyword arguments; what to call it with instead, None: with the same."""


class Calls(ABC):
    """The calls of one patched model. A class of these is what a family is given for ``calls``."""

    def __init__(self, patched: Patched) -> None:
        self.patched = patched

    @abstractmethod
    def begin(self, kwargs: dict[str, Any]) -> Call:
        """What a forward of the model with these arguments is. One that cannot be pooled is refused, in words."""

    @abstractmethod
    def prefill_from(
        self, call: Prefill, layer: int, starts: Tensor, lengths: Tensor | None, hidden: Tensor, kwargs: dict[str, Any]
    ) -> None:
        """Set what layers get from a site on (``call.override``), and note what decoding needs (``call.states``).

        Args:
            call: where the call is; its positions are renumbered already if they are to be.
            layer: the site's, at which columns have merged; ``hidden [B, T, D]`` and ``kwargs`` are what it was given.
            starts: ``[B, width]``, the column at which each pooled one begins.
            lengths: ``[B]`` int32, the pooled columns of each row, which end at the right; None: none is padding.
        """

    @abstractmethod
    def continue_from(self, call: Continuation, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> None:
        """Set what layers get from ``layer`` on, at a site whose keys have merged in the prefill."""

    def end(self, call: PooledCall, output: Any) -> Any:
        """What the model's forward returns, made of what it returned."""
        return output

    def hooks(self) -> Iterable[tuple[nn.Module, Hook]]:
        """Pre-hooks needed besides those on the decoder and its layers, which run before them."""
        return ()

    def depths(self) -> list[int]:
        """For each layer that keeps keys, the last layer whose site its input has passed."""
        return list(range(len(self.patched.decoder.layers)))
