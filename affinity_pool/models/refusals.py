"""What cannot work while audio is pooled, each refused in a sentence that says what to do instead."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from .cache import PooledCache, cache_of
from .masks import adds_to_scores, is_supported
from .running import Patched, in_backward
from .settings import Attention


def check_decoder(decoder: Any) -> None:
    """Refuse decoders that look at fewer keys than there are: pooling changes their number."""
    kinds = set(getattr(decoder.config, "layer_types", None) or []) - {"full_attention"}
    if kinds:
        raise NotImplementedError(
            f"the decoder has layers of type {', '.join(sorted(kinds))}: pooling changes the number of keys, which "
            "only full attention follows. Load the model with full attention in every layer (use_sliding_window=False)"
        )
    window = getattr(decoder.config, "sliding_window", None)
    if window is not None and not getattr(decoder.config, "layer_types", None) and window < _longest(decoder):
        raise NotImplementedError(
            f"the decoder attends to the last {window} tokens only (config.sliding_window): pooling changes the number "
            "of keys, which only full attention follows. Set config.sliding_window to None if the model can do without"
        )


def check_prefill(kwargs: dict[str, Any], patched: Patched) -> None:
    """Refuse, before anything is computed, what a prefill with audio cannot do while it is pooled."""
    features, decoder = patched.features, patched.decoder
    mask, cache = kwargs.get("attention_mask"), cache_of(kwargs)
    implementation = decoder.config._attn_implementation
    if cache is not None:
        _check_cache(cache, _longest(decoder))
    if kwargs.get("input_ids") is None and kwargs.get(features) is not None:
        raise NotImplementedError(
            "audio positions are found in input_ids, which this call does not pass: pass input_ids instead of "
            "inputs_embeds, or no features but audio_positions beside inputs_embeds that hold the audio"
        )
    if isinstance(kwargs.get("logits_to_keep"), Tensor):
        raise NotImplementedError(
            "logits_to_keep must be an int while pooling, how many of the last columns: pooled columns are not those "
            "that a tensor of positions means"
        )
    if kwargs.get("logits_to_keep") and patched.logits == "expanded" and any(site.reduction for site in patched.sites):
        raise NotImplementedError(
            "logits_to_keep with logits='expanded' and a reduction of one's own: a column that was dropped has the "
            "logits of one before it, which may be none of the last. Leave logits_to_keep out"
        )
    check_implementation(implementation, patched.attention)
    if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
        raise NotImplementedError(
            "attention_mask must be 2-D, [batch, tokens], while pooling: the patch builds the causal masks itself"
        )
    if _is_packed(kwargs, decoder):
        raise NotImplementedError(
            "several prompts are packed into one row (cu_seq_lens_q, or position_ids that do not go up by one, which "
            "transformers takes for that), and the masks of pooled columns know of one: give each prompt a row of its "
            "own, padded"
        )


def _is_packed(kwargs: dict[str, Any], decoder: Any) -> bool:
    """As transformers tells it: by positions, where there is no mask, and no cache but in flash kernels of one row."""
    if kwargs.get("cu_seq_lens_q") is not None:
        return True
    positions = kwargs.get("position_ids")
    if positions is not None and positions.dim() == 3 and positions.shape[0] == 4:
        positions = positions[0]  # of text; the others are of time, height and width
    if positions is None or positions.dim() != 2 or kwargs.get("attention_mask") is not None:
        return False
    asked = kwargs.get("use_cache")
    caches = bool(getattr(decoder.config, "use_cache", True) if asked is None else asked) and not runs_again(decoder)
    tokens = kwargs["inputs_embeds"] if kwargs.get("input_ids") is None else kwargs["input_ids"]
    if tokens.shape[0] > 1 if "flash" in decoder.config._attn_implementation else caches:
        return False
    return bool((positions.diff() != 1).any())


def runs_again(decoder: Any) -> bool:
    """Whether the backward pass runs layers again (gradient checkpointing), which then keep no keys."""
    parts = (decoder, *decoder.layers)
    if not decoder.training or not torch.is_grad_enabled():  # nothing is, and keys are kept
        return False
    return any(getattr(part, "gradient_checkpointing", False) for part in parts)


def check_not_in_backward() -> None:
    """Refuse layers that the backward pass runs again, outside of the call that pooled."""
    if in_backward():
        raise RuntimeError(
            "a layer of a patched model was run again in the backward pass, where what pooling made of its arguments "
            "is not known. Checkpoint by model.gradient_checkpointing_enable(), or by torch's checkpoint_wrapper "
            "around whole decoder layers"
        )


def check_implementation(implementation: str, attention: Attention) -> None:
    """Refuse attention functions that the patch has no mask for."""
    if not is_supported(implementation):
        raise NotImplementedError(
            f"attention implementation {implementation!r} is not supported: "
            "call model.set_attn_implementation('sdpa'), or 'eager' or 'flash_attention_2'"
        )
    if attention == "proportional" and not adds_to_scores(implementation):
        raise NotImplementedError(
            f"attention='proportional' adds to attention scores, for which {implementation!r} has no argument: "
            "call model.set_attn_implementation('sdpa'), or 'eager'"
        )


def _longest(decoder: Any) -> int:
    """Tokens the decoder can hold; a sliding window that is no narrower never cuts anything."""
    return getattr(decoder.config, "max_position_embeddings", sys.maxsize)


def _check_cache(cache: Any, longest: int) -> None:
    def keeps_all(layer: Any) -> bool:
        return type(layer) is DynamicLayer or (
            isinstance(layer, DynamicLayer) and getattr(layer, "sliding_window", 0) >= longest
        )

    fits = type(cache) in (DynamicCache, PooledCache) and all(map(keeps_all, cache.layers))
    if not fits or getattr(cache, "offloading", False):
        kind = "an offloaded one" if fits else type(cache).__name__
        raise NotImplementedError(
            f"pooling needs a DynamicCache of plain layers, which may differ in length, got {kind}: static, "
            "sliding-window, quantised and offloaded caches do not work. Leave cache_implementation out, and pass "
            "a DynamicCache or no cache"
        )
    if cache.get_seq_length() > 0:
        raise NotImplementedError(
            "audio on top of a filled KV cache is not supported: leave the audio features out of a turn that is only "
            "text, or prefill the whole conversation afresh, without a cache and without prefill_chunk_size"
        )
