"""The KV cache after a pooled prefill: from each site on, its layers hold fewer columns than the caller has tokens.

``generate`` and the caller keep counting their own tokens, so ``PooledCache`` answers in those where they ask and in
columns where masks are built.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from .keys import SiteState, selected
from .running import Patched, PooledBy, Prefill, in_backward, innermost

# What layers call it in transformers 4.55; what models call it, and layers from 4.56 on; what both call it since 5.24,
# where models still take the second. Oldest first: a version may carry along, unused, a name it does not know yet.
CACHE_KEYWORDS = ("past_key_value", "past_key_values", "cache")


def cache_of(kwargs: dict[str, Any]) -> Any:
    """The cache among the keyword arguments of a model or a decoder layer; None where there is none."""
    return next((kwargs[name] for name in CACHE_KEYWORDS if name in kwargs), None)


def check_owner(pooled_by: PooledBy, patched: Patched | None) -> None:
    """Raise unless the patch at work is one that can continue a cache of ``pooled_by``."""
    if patched is None or patched.pooled_by != pooled_by:
        layers, positions = pooled_by
        raise RuntimeError(
            "this KV cache was pooled by affinity_pool.patch, and no patch like that is at work in this call: its "
            "layers differ in length and another model would misread them. Continue it on a model patched at layers "
            f"{', '.join(map(str, layers))} with positions={positions!r}, or start with a new cache"
        )


class OwnedCache(DynamicCache):
    """A ``DynamicCache`` that only a model patched like the one that pooled can continue."""

    pooled_by: PooledBy

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if (patched := innermost()) is None and in_backward():
            raise RuntimeError(
                "a layer that the backward pass runs again would put its keys into the KV cache once more: call the "
                "model with use_cache=False, or checkpoint by model.gradient_checkpointing_enable()"
            )
        check_owner(self.pooled_by, patched)
        return super().update(*args, **kwargs)


class PooledCache(OwnedCache):
    """A ``DynamicCache`` that a patched model has pooled. Only a model patched alike can continue it."""

    states: dict[int, SiteState]
    audio: Tensor
    """``[B, L]`` bool: the audio tokens of the prefill, in the caller's columns."""
    mask: Tensor | None
    """``[B, L]`` the attention mask of the prefill; None: nothing was padding."""

    @classmethod
    def adopt(cls, cache: Any, call: Prefill) -> None:
        """Turn the cache of a running prefill into a pooled one, in place: the caller holds this very object."""
        if not isinstance(cache, cls):
            cache.__class__ = cls
            cache.audio, cache.mask, cache.pooled_by = call.caller_audio, call.mask, call.patched.pooled_by
            for layer in cache.layers:
                layer.__class__ = DynamicLayer  # one with a window that never cuts is no other
        cache.states = call.states

    def check_history(self, mask: Tensor) -> None:
        """Raise if the mask of the caller's tokens so far is not the prefill's: merged tokens cannot be hidden."""
        known = min(mask.shape[1], self.audio.shape[1])
        seen = torch.ones_like(self.audio) if self.mask is None else self.mask
        if not torch.equal(mask[:, :known].bool(), seen[:, :known].bool().to(mask.device)):
            raise NotImplementedError(
                "attention_mask is not what it was when the prompt was pooled: tokens that have merged cannot be "
                "hidden one by one. Prefill the conversation afresh with this mask"
            )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the caller for layer 0, which is what ``generate`` asks for; columns for any other."""
        columns = self.columns(layer_idx)
        return columns + self.states[0].removed if layer_idx == 0 and 0 in self.states and columns else columns

    def columns(self, layer_idx: int) -> int:
        """Columns this layer holds."""
        return super().get_seq_length(layer_idx)

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Columns before the query: masks are about columns (transformers 5)."""
        return self.columns(layer_idx)

    def crop(self, tokens: int) -> None:
        """Drop tokens from the end: all but ``tokens`` if positive (transformers 4), else ``-tokens`` of them."""
        drop = self.get_seq_length() - tokens if tokens > 0 else -tokens
        if drop <= 0:
            return
        if drop > self._text_tail():
            raise NotImplementedError(
                f"cannot crop {drop} tokens: that reaches into the pooled audio, where columns no longer stand for one "
                "token each. Crop text after the last audio token only, or prefill the shorter prompt afresh"
            )
        for layer in self.layers:
            layer.crop(-drop)  # type: ignore[union-attr]  # adopted with plain DynamicLayers only
        for index, state in self.states.items():
            if state.valid is not None:
                state.valid = state.valid[:, : self.columns(index)]
            if state.log_sizes is not None:
                state.log_sizes = state.log_sizes[:, : self.columns(index)]

    def _text_tail(self) -> int:
        """The caller's tokens after the last audio token of any row; those after the prompt if that is padded on the
        right, for then its last columns are no longer side by side."""
        prompt = self.audio.shape[1]
        if self.mask is not None and not bool(self.mask[:, -1].all()):
            return self.get_seq_length() - prompt
        return (
            self.get_seq_length() - 1 - int((self.audio.any(0) * torch.arange(prompt, device=self.audio.device)).max())
        )

    def reset(self) -> None:
        """Forget everything: an ordinary, empty ``DynamicCache`` again."""
        self.layers = [type(layer)() for layer in self.layers]  # reset() of transformers 4 keeps the lengths
        self.__class__ = DynamicCache  # type: ignore[assignment]
        del self.states, self.audio, self.mask, self.pooled_by

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]  # says LongTensor, takes any
        self._select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._select(torch.arange(self.audio.shape[0]).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._select(indices)

    def _select(self, rows: Tensor) -> None:
        for state in self.states.values():
            state.select(rows)
        self.audio, self.mask = selected(self.audio, rows), selected(self.mask, rows)
