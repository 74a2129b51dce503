"""Pooling what a decoder attends to: the encoder's output in encoder-decoder models, the site ``"memory"``.

A hook on the decoder pools the encoder's output in the call that fills the keys and values of cross-attention. There
are no positions to keep. Hooks on its layers bring the mask that the pooled keys need in cross-attention, for rows of a
batch are left with different lengths, and the sizes of merged tokens if those are to weigh. Both live on the cache
for the steps that follow. Weights of cross-attention, where a caller asks for them, are spread over the tokens that
merged: Whisper's token timestamps are read from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache

from ..reference import rows_left
from .cache import OwnedCache, cache_of
from .calls import Calls
from .keys import selected
from .masks import attention_mask, log_sizes
from .modules import Hook, HookResult
from .refusals import check_implementation, check_not_in_backward, runs_again
from .running import Call, Patched, PooledBy, PooledCall, current
from .sites import MEMORY, number
from .stats import PrefillStats, SiteRecord, prefill_stats


@dataclass
class Memory:
    """Pooled keys of cross-attention, padded on the right."""

    valid: Tensor | None
    """``[B, M]`` bool, False in padding; None: all are keys."""
    log_sizes: Tensor | None
    """``[B, M]`` what is added to scores; None where nothing is (attention="plain")."""
    segment_ids: Tensor
    """``[B, S]`` int32 the key that each of the encoder's tokens went to, -1 in padding."""
    counts: Tensor
    """``[B, M]`` int32 tokens in each."""

    def select(self, rows: Tensor) -> None:
        """Follow the batch to these rows, as the keys do."""
        self.segment_ids, self.counts = selected(self.segment_ids, rows), selected(self.counts, rows)
        self.valid, self.log_sizes = selected(self.valid, rows), selected(self.log_sizes, rows)

    def mask(self, implementation: str, hidden: Tensor) -> Tensor | None:
        """For queries ``hidden [B, T, D]``."""
        queries, keys = hidden.shape[1], self.counts.shape[1]
        return attention_mask(implementation, self.valid, queries, keys, hidden, self.log_sizes, causal=False)

    def spread(self, weights: Tensor) -> Tensor:
        """Attention ``[B, heads, queries, M]`` as ``[B, heads, queries, S]``: each token's even part of its group's."""
        share = weights / self.counts.clamp(min=1)[:, None, None]
        ids = self.segment_ids.long()[:, None, None].expand(-1, *share.shape[1:3], -1)
        return share.gather(-1, ids.clamp(min=0)).masked_fill(ids < 0, 0)


class PooledMemoryCache(EncoderDecoderCache):
    """An ``EncoderDecoderCache`` with pooled cross-attention. Only a model patched alike can continue it."""

    memory: Memory

    @classmethod
    def adopt(cls, cache: EncoderDecoderCache, memory: Memory, pooled_by: PooledBy) -> None:
        """Turn the cache of a running call into a pooled one, in place: the caller holds this very object."""
        cache.__class__ = cls
        cache.memory = memory  # type: ignore[attr-defined]  # it is one of cls now
        own: Any = cache.self_attention_cache  # every step adds to it, and so is checked
        own.__class__, own.pooled_by = OwnedCache, pooled_by

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]  # says LongTensor, takes any
        self.memory.select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.memory.select(torch.arange(self.memory.counts.shape[0]).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.memory.select(indices)

    def reset(self) -> None:
        """Forget everything: an ordinary, empty ``EncoderDecoderCache`` again."""
        fresh = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.__class__ = EncoderDecoderCache  # type: ignore[assignment]
        self.__dict__ = fresh.__dict__


@dataclass
class _Attending(PooledCall):
    """A call whose decoder attends to pooled memory, if ``memory`` is given."""

    memory: Memory | None = None
    mask: Tensor | None = None
    """What its layers are given, made at the first."""


class MemoryCalls(Calls):
    """A patched encoder-decoder model."""

    def __init__(self, patched: Patched) -> None:
        super().__init__(patched)
        if patched.positions != "keep":
            raise ValueError(
                f"positions={patched.positions!r}, but what a decoder attends to has none: leave positions out"
            )

    def begin(self, kwargs: dict[str, Any]) -> Call:
        patched = self.patched
        config = patched.decoder.config
        check_implementation(config._attn_implementation, patched.attention)
        if "flash" in config._attn_implementation:
            raise NotImplementedError(
                f"{config._attn_implementation!r} takes the mask of pooled memory for one of the queries: call "
                "model.set_attn_implementation('sdpa'), or 'eager'"
            )
        _check_cache(cache_of(kwargs))
        asked = kwargs.get("output_attentions")
        if (config.output_attentions if asked is None else asked) and kwargs.get("return_dict") is False:
            raise NotImplementedError(
                "output_attentions with return_dict=False: pooled cross-attention is spread over the encoder's tokens "
                "by its name in the output. Leave return_dict out"
            )
        return _Attending(patched)

    def end(self, call: PooledCall, output: Any) -> Any:
        memory = call.memory if isinstance(call, _Attending) else None
        weights = None if memory is None else getattr(output, "cross_attentions", None)
        if memory is not None and weights is not None:
            output.cross_attentions = tuple(None if of is None else memory.spread(of) for of in weights)
        return output

    def hooks(self) -> Iterator[tuple[nn.Module, Hook]]:
        yield self.patched.decoder, self._at_decoder
        for index, layer in enumerate(self.patched.decoder.layers):
            yield layer, partial(self._at_layer, index)

    def to_pass(self) -> range:
        decoder = self.patched.decoder
        dropped = decoder.training and getattr(decoder, "layerdrop", 0) > 0  # any of them, at random
        return range(0 if dropped else len(decoder.layers))

    def stats(self, records: list[SiteRecord]) -> PrefillStats:
        decoder = self.patched.decoder
        width = decoder.config.d_model if hasattr(decoder.config, "d_model") else decoder.config.hidden_size
        return prefill_stats(records, list(range(len(decoder.layers))), 2 * width * decoder.dtype.itemsize)

    def _at_decoder(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> HookResult:
        call, hidden = current(self.patched), kwargs.get("encoder_hidden_states")
        if not isinstance(call, _Attending):
            if hidden is not None or len(args) > 2:  # after ids and their mask
                raise RuntimeError(
                    "the decoder of a patched model was called around the model, where it would attend to all of the "
                    f"encoder's tokens: call the {type(self.patched.model).__name__}, or remove the patch"
                )
            return None
        if hidden is None:
            return None
        cache, mask = cache_of(kwargs), kwargs.get("encoder_attention_mask")
        if cache is None or not any(cache.is_updated.values()):
            kwargs["encoder_hidden_states"] = self._pool(call, hidden, mask)
        else:
            self._go_on(call, cache, hidden, mask)
        if call.memory is not None and "encoder_attention_mask" in kwargs:
            kwargs["encoder_attention_mask"] = None  # of columns that are no more
        return args, kwargs

    def _go_on(self, call: _Attending, cache: EncoderDecoderCache, hidden: Tensor, mask: Tensor | None) -> None:
        """Find the memory whose keys a cache holds."""
        widths = {cache.cross_attention_cache.get_seq_length(at) for at in range(len(self.patched.decoder.layers))}
        if isinstance(cache, PooledMemoryCache):
            call.memory = cache.memory
        elif widths != {hidden.shape[1]}:  # pooled, and rebuilt as a plain one, as Whisper's generate() returns it
            if self.patched.model.training and self.patched.sites[0].is_ranged:
                raise RuntimeError(
                    "this cache was pooled by a number drawn from a range, and rebuilt since as one that does not tell "
                    "which: generate in evaluation mode (model.eval())"
                )
            self._pool(call, hidden, mask)
            call.records = []
        wanted = hidden.shape[1] if call.memory is None else call.memory.counts.shape[1]
        if widths != {wanted}:
            raise RuntimeError(
                f"the cache has cross-attention keys of {', '.join(map(str, sorted(widths)))} columns in its layers, "
                f"and {wanted} were expected in each: the call that made them did not end, or they were pooled by "
                "another rule. Start with a new cache"
            )

    def _pool(self, call: _Attending, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """``[B, S, D]`` pooled: ``[B, M, D]``, as wide as its longest row; as it was, unless something merged."""
        site = self.patched.drawn()[MEMORY]
        before = [hidden.shape[1]] * hidden.shape[0]
        lengths, valid = None, hidden.new_ones(hidden.shape[:2], dtype=torch.bool)
        if mask is not None:
            valid = _of_tokens(mask, hidden.shape[1]).to(hidden.device).bool()
            lengths = valid.sum(1, dtype=torch.int32)
            before = lengths.tolist()
            _check_padding(valid)
        pooled = site.reduce(hidden, lengths, None, left_padded=False)
        if site.keep is None:
            after = pooled.lengths.tolist()
        else:
            after = [rows_left(tokens, number(site.keep)) for tokens in before]
        call.records = [SiteRecord(site, valid, before, after, pooled.segment_ids, pooled.counts)]
        if after == before:
            return hidden
        width = max(after)
        counts = pooled.counts[:, :width]
        weights = log_sizes(counts) if self.patched.attention == "proportional" else None
        filled = torch.arange(width, device=hidden.device) < pooled.lengths[:, None]
        call.memory = Memory(filled if min(after) < width else None, weights, pooled.segment_ids, counts)
        return pooled.values[:, :width]

    def _at_layer(self, index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> HookResult:
        call = current(self.patched)
        if not isinstance(call, _Attending):
            check_not_in_backward()
            return None
        first = not call.passed
        call.passed.append(index)
        if call.memory is None:
            return None
        cache = cache_of(kwargs)
        if cache is not None and not isinstance(cache, PooledMemoryCache) and not runs_again(self.patched.decoder):
            PooledMemoryCache.adopt(cache, call.memory, self.patched.pooled_by)
        hidden = args[0] if args else kwargs["hidden_states"]
        implementation = self.patched.decoder.config._attn_implementation
        if first:
            call.mask = call.memory.mask(implementation, hidden)
        return args, kwargs | {"encoder_attention_mask": call.mask}


def check_memory(model: Any, decoder: Any, name: str) -> None:
    """Refuse heads of a family that have no decoder attending to an encoder."""
    if not hasattr(decoder, "layers") or not all(hasattr(layer, name) for layer in decoder.layers):
        raise NotImplementedError(f"{type(model).__name__} has no decoder that attends to its encoder: nothing to pool")


MOONSHINE_STRIDE = 64 * 3 * 2  # samples to a token


def _of_tokens(mask: Tensor, tokens: int) -> Tensor:
    """The encoder's mask; Moonshine's in transformers 4 is of samples, which its decoder thins out as here."""
    if mask.shape[1] > tokens:
        mask = mask[:, ::MOONSHINE_STRIDE][:, :tokens]
    if mask.shape[1] != tokens:
        raise NotImplementedError(
            f"the encoder's attention mask tells of {mask.shape[1]} tokens and its output has {tokens}: this release "
            "of transformers makes them in a way that the patch does not know"
        )
    return mask


def _check_padding(valid: Tensor) -> None:
    if bool((valid[:, 1:] > valid[:, :-1]).any()):
        raise NotImplementedError(
            "the encoder's attention mask has ones after its zeros: pad features on the right, as the processor does"
        )


def _check_cache(cache: Any) -> None:
    if cache is None:
        return
    parts: list[Any] = [getattr(cache, f"{name}_attention_cache", None) for name in ("self", "cross")]
    plain = all(
        type(part) in (DynamicCache, OwnedCache) and all(type(layer) is DynamicLayer for layer in part.layers)
        for part in parts
    )
    if not plain or any(getattr(part, "offloading", False) for part in parts):
        raise NotImplementedError(
            f"pooling needs an EncoderDecoderCache of two DynamicCaches, whose lengths may differ, got "
            f"{type(cache).__name__}: static, quantised and offloaded caches do not work. Leave cache_implementation "
            "out, and pass such a cache or none"
        )
