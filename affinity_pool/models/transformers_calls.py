"""Calls of decoders as transformers writes them: masks, positions and rotary phases are arguments of every layer.

A prefill is told by its features, or by embeddings of which the caller says what is audio. At a site it gets the mask,
positions and phases of the pooled columns; a continuation gets the mask of the pooled keys. Without a KV cache each
step is a prefill: causality makes it pool the same groups, unless a site draws from a range, as it does in training.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .cache import PooledCache, cache_of, check_owner
from .keys import SiteState
from .layers import AUDIO_POSITIONS, LayerCalls
from .losses import Targets
from .masks import attention_mask, log_sizes
from .modules import Hook
from .refusals import check_prefill, runs_again
from .running import Call, Continuation, LayerCall, PooledCall, Prefill, current


class TransformersCalls(LayerCalls):
    """The default: every family but Kimi-Audio."""

    def begin(self, kwargs: dict[str, Any]) -> Call:
        patched, ids, cache = self.patched, kwargs.get("input_ids"), cache_of(kwargs)
        features, embedded = self._carries_features(kwargs), None
        if features and kwargs.get(AUDIO_POSITIONS) is not None:
            raise ValueError("audio_positions goes with inputs_embeds, and this call has features: pass one of them")
        if features or (embedded := _audio_among_embeddings(kwargs)) is not None:
            check_prefill(kwargs, patched)
            audio = self._placeholders(kwargs["input_ids"]) if embedded is None else embedded
            last_logits = kwargs.get("logits_to_keep") or 0
            call = Prefill(patched, audio, kwargs.get("attention_mask"), last_logits=last_logits)
            if kwargs.get("labels") is not None or kwargs.get("shift_labels") is not None:
                call.targets, call.either_side = Targets(kwargs, (audio.shape[0], audio.shape[1])), True
            elif cache is None:  # generate() brings one
                call.either_side = patched.model.training or patched.logits == "expanded"
            return call
        if isinstance(cache, PooledCache):
            check_owner(cache.pooled_by, patched)
            queries = (kwargs["inputs_embeds"] if ids is None else ids).shape[1]
            mask = kwargs.get("attention_mask")
            if mask is not None and queries > 1:
                cache.check_history(mask[:, :-queries])
            return Continuation(patched, _own_mask(mask, queries), states=cache.states)
        return Call(patched)

    def _placeholders(self, ids: Tensor) -> Tensor:
        return ids == self.patched.audio_token_id(self.patched.model.config)

    def _carries_features(self, kwargs: dict[str, Any]) -> bool:
        """Whether a call has features that it uses: assisted decoding may hand them to steps that verify text alone."""
        ids = kwargs.get("input_ids")
        if kwargs.get(self.patched.features) is None or (ids is not None and ids.shape[1] == 1):
            return False
        if isinstance(cache_of(kwargs), PooledCache) and ids is not None:
            return bool(self._placeholders(ids).any())
        return True

    def end(self, call: PooledCall, output: Any) -> Any:
        if not isinstance(call, Prefill) or call.went is None:
            return output
        if isinstance(output, tuple):
            at = 1 if call.targets is not None and "labels" in call.targets.handed else 0  # after the loss
            return (*output[:at], _expanded(output[at], call.went, call.tokens), *output[at + 1 :])
        output.logits = _expanded(output.logits, call.went, call.tokens)
        return output

    def prefill_from(
        self, call: Prefill, layer: int, starts: Tensor, filled: Tensor | None, hidden: Tensor, kwargs: dict[str, Any]
    ) -> None:
        decoder, width = self.patched.decoder, starts.shape[1]
        position_ids = torch.arange(width, device=hidden.device)[None]
        if filled is not None and call.left_padded:
            position_ids = (position_ids - (~filled).sum(1, keepdim=True)).clamp(min=0)
        if self.patched.positions == "keep":
            given = call.override.get("position_embeddings", kwargs["position_embeddings"])
            cos_sin = tuple(_phases_at(phase, starts) for phase in given)
        else:
            cos_sin = decoder.rotary_emb(hidden, call.positions)
        implementation, weights = decoder.config._attn_implementation, log_sizes(call.sizes)
        padding = filled if call.left_padded else None  # no token sees padding that comes after it
        call.override = {
            "attention_mask": attention_mask(implementation, padding, width, width, hidden, weights),
            "position_ids": position_ids,  # from 0 in both modes: gaps make FlashAttention see packed sequences
            "position_embeddings": cos_sin,
        }
        call.states[layer] = SiteState(call.caller_audio.shape[1] - width, filled, call.shift, weights)
        cache = cache_of(kwargs)
        if cache is not None and not runs_again(decoder):
            PooledCache.adopt(cache, call)

    def continue_from(self, call: Continuation, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> None:
        decoder, state, queries = self.patched.decoder, call.states[layer], hidden.shape[1]
        keys = cache_of(kwargs).columns(layer) + queries
        valid = state.valid_keys(keys, call.own_mask)
        implementation = decoder.config._attn_implementation
        mask = attention_mask(implementation, valid, queries, keys, hidden, state.weights(keys))
        if mask is None and kwargs["attention_mask"] is None and state.shift is None:
            call.override = {}
            return
        call.override = {"attention_mask": mask}
        if state.shift is not None:
            assert call.positions is not None
            call.override["position_embeddings"] = decoder.rotary_emb(hidden, call.positions - state.shift)

    def more_hooks(self) -> Iterator[tuple[nn.Module, Hook]]:
        """Renumbering needs the positions behind the phases, which layers are not always told (multimodal RoPE)."""
        if self.patched.positions == "compact":
            yield self.patched.decoder.rotary_emb, self._note_positions

    def _note_positions(self, rotary: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = current(self.patched)
        if isinstance(call, LayerCall) and call.positions is None:  # else the question is our own
            call.positions = args[1] if len(args) > 1 else kwargs["position_ids"]


def _audio_among_embeddings(kwargs: dict[str, Any]) -> Tensor | None:
    """The caller's ``audio_positions``, if this call has embeddings that are audio; None if it has none."""
    given, ids, embeds = kwargs.get(AUDIO_POSITIONS), kwargs.get("input_ids"), kwargs.get("inputs_embeds")
    if embeds is None:
        cache = cache_of(kwargs)
        if given is not None and (cache is None or cache.get_seq_length() == 0):
            raise ValueError(
                "audio_positions goes with inputs_embeds, and this call has none: where there are input_ids their "
                "placeholders say what is audio. Without a KV cache generate() cannot go on from inputs_embeds"
            )
        return None  # of a prompt whose decoding this is: generate() hands its arguments to every step
    if ids is not None or (embeds.shape[1] == 1 and given is None):
        return None
    if given is None:
        raise ValueError(
            "inputs_embeds may hold audio, and pooling cannot see where: pass audio_positions, a [batch, tokens] "
            "bool mask of the embeddings that are audio (all False if none is), to the model or to generate(), or "
            "remove the patch"
        )
    if not isinstance(given, Tensor) or given.dtype != torch.bool or given.shape != embeds.shape[:2]:
        kind = f"{given.dtype} {list(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(f"audio_positions must be a bool tensor of shape {list(embeds.shape[:2])}, got {kind}")
    return given.to(embeds.device) if bool(given.any()) else None


def _expanded(logits: Tensor, went: Tensor, tokens: list[int] | None) -> Tensor:
    """Logits ``[B, W, V]`` at the caller's columns; of the last W of them where fewer than all were asked for."""
    assert tokens is not None
    missing = max(tokens) - logits.shape[1]
    index = went if missing == 0 else went[:, -logits.shape[1] :] - missing
    return logits[torch.arange(logits.shape[0], device=logits.device)[:, None], index.to(logits.device)]


def _phases_at(phase: Tensor, index: Tensor) -> Tensor:
    """Rows ``index [B, W]`` of cosines or sines ``[..., B or 1, T, D]``."""
    if phase.shape[-3] == 1:  # one for all rows, as without padding: a copy of whole rows, ten times faster
        return phase.squeeze(-3).index_select(-2, index.flatten()).unflatten(-2, index.shape)
    axes = phase.shape[:-3]  # multimodal RoPE of transformers 4 tells time, height and width apart up to attention
    rows = index.unsqueeze(-1).expand(*axes, *index.shape, phase.shape[-1])
    return phase.expand(*axes, index.shape[0], -1, -1).gather(-2, rows)


def _own_mask(mask: Tensor | None, queries: int) -> Tensor | None:
    """The mask of this call's own tokens if some are padding: a second turn of a batch, padded in the middle.

    A single token never is: not looking keeps decoding free of host synchronisation.
    """
    if mask is None or queries == 1:
        return None
    own = mask[:, -queries:].bool()
    return None if bool(own.all()) else own
