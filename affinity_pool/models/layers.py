"""Pooling between the layers of a decoder that has audio among its own tokens.

A hook on the layer of each site pools the hidden states (prefill) or finds the shape of the pooled keys (continuation)
and decides what layers are given from there on; those up to the next site take it over.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from .calls import Calls
from .modules import Hook, HookResult
from .prefill import pool_at_site
from .refusals import check_not_in_backward
from .running import Continuation, LayerCall, Prefill, current
from .stats import PrefillStats, SiteRecord, prefill_stats

AUDIO_POSITIONS = "audio_positions"
"""What a patched model's forward takes besides: ``[B, T]`` bool, which of ``inputs_embeds`` are audio."""


class LayerCalls(Calls):
    """The calls of a model whose decoder's layers are pooled between."""

    takes: ClassVar[tuple[str, ...]] = (AUDIO_POSITIONS,)

    @abstractmethod
    def prefill_from(
        self, call: Prefill, layer: int, starts: Tensor, filled: Tensor | None, hidden: Tensor, kwargs: dict[str, Any]
    ) -> None:
        """Set what layers get from a site on (``call.override``), and note what decoding needs (``call.states``).

        Args:
            call: where the call is; its positions are renumbered already if they are to be, and its sizes are those of
                the pooled columns.
            layer: the site's, at which columns have merged; ``hidden [B, T, D]`` and ``kwargs`` are what it was given.
            starts: ``[B, width]``, the column at which each pooled one begins.
            filled: ``[B, width]`` bool, those of them that are not padding; None: none is.
        """

    @abstractmethod
    def continue_from(self, call: Continuation, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> None:
        """Set what layers get from ``layer`` on, at a site whose keys have merged in the prefill."""

    def more_hooks(self) -> Iterable[tuple[nn.Module, Hook]]:
        """Pre-hooks needed besides those on the decoder and its layers, which run before them."""
        return ()

    def depths(self) -> list[int]:
        """For each layer that keeps keys, the last layer whose site its input has passed."""
        return list(range(len(self.patched.decoder.layers)))

    def hooks(self) -> Iterator[tuple[nn.Module, Hook]]:
        layers = self.patched.decoder.layers
        yield self.patched.decoder, self._at_decoder
        for index in self.to_pass():
            yield layers[index], partial(self._at_layer, index)
        yield from self.more_hooks()

    def to_pass(self) -> range:
        return range(self.patched.layers[0], len(self.patched.decoder.layers))

    def stats(self, records: list[SiteRecord]) -> PrefillStats:
        decoder = self.patched.decoder
        config = decoder.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return prefill_stats(records, self.depths(), 2 * config.num_key_value_heads * head_dim * decoder.dtype.itemsize)

    def _at_decoder(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if current(self.patched) is None and kwargs.get("inputs_embeds") is not None:
            check_not_in_backward()
            raise RuntimeError(
                "the decoder of a patched model was called with embeddings, around the model: pooling cannot see which "
                f"of them are audio. Call the {type(self.patched.model).__name__}, with audio_positions if it is to be "
                "given embeddings, or remove the patch. If you did, others have put back a forward from before the "
                "patch: remove it and patch again"
            )

    def _at_layer(self, index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> HookResult:
        """Pool or go on at a site, and give each layer what holds since the last one."""
        call = current(self.patched)
        if call is None:
            check_not_in_backward()
        if not isinstance(call, LayerCall):
            return None
        if isinstance(call, Prefill) and (site := call.sites.get(index)) is not None:
            args = (pool_at_site(self, call, site, args[0], kwargs), *args[1:])
        elif isinstance(call, Continuation) and index in call.states:
            self.continue_from(call, index, args[0], kwargs)
        call.passed.append(index)
        if not call.override:
            return None
        kwargs.update(call.override)
        return args, kwargs
