"""Kimi-Audio, whose code comes with the checkpoint and calls its layers in a way of its own.

Two streams of ids run side by side, audio and text, and their embeddings are added; at the positions of a mask,
``is_continuous_mask``, Whisper's features are added too. From one layer in the middle a branch of further layers, the
audio stream's (``mimo_layers``), goes its own way. KV caches are tuples of ``(keys, values)``, layers get positions
instead of phases and look the phases up in a table as long as the keys, and a loop of its own decodes: it passes the
features in the first call alone, and ``position_ids`` in every call.

So here masks need nothing (a conversation is a batch of one, without padding), positions are taken along instead of
phases, the table is asked for more rows than there are keys, and the branch takes up what held at its layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .cache import check_owner
from .keys import SiteState
from .layers import AUDIO_POSITIONS, LayerCalls
from .modules import Hook
from .running import Call, Continuation, LayerCall, Patched, PooledBy, PooledCall, Prefill, current, innermost


def no_audio_token_id(config: Any) -> int:
    raise NotImplementedError("Kimi-Audio marks audio by is_continuous_mask, not by an id in input_ids")


class PooledKeys(tuple[tuple[Tensor, Tensor], ...]):
    """A KV cache of Kimi-Audio that a patched model has pooled. Only a model patched alike can continue it."""

    states: dict[int, SiteState]
    pooled_by: PooledBy

    def __getitem__(self, index: Any) -> Any:
        check_owner(self.pooled_by, innermost())
        return super().__getitem__(index)


@dataclass
class _WithBranch(LayerCall):
    branch: dict[str, Any] = field(default_factory=dict, kw_only=True)
    """What holds for the audio stream's layers: the override at the layer they begin with."""


@dataclass
class _Prefill(Prefill, _WithBranch):
    """A running forward with audio; its caches are returned, not filled in place."""


@dataclass
class _Continuation(Continuation, _WithBranch):
    """A running forward on top of pooled keys."""


class KimiAudioCalls(LayerCalls):
    """A patched Kimi-Audio. Its statistics count the keys of the audio stream's layers too."""

    def __init__(self, patched: Patched) -> None:
        super().__init__(patched)
        if patched.attention == "proportional":
            raise NotImplementedError(
                "attention='proportional' adds to attention scores, and Kimi-Audio's layers take no mask that could "
                "bring it: leave attention at 'plain'"
            )
        if patched.logits == "expanded":
            raise NotImplementedError(
                "logits='expanded': Kimi-Audio has logits of two kinds, which are left at the columns that merged: "
                "leave logits at 'pooled'"
            )

    def begin(self, kwargs: dict[str, Any]) -> Call:
        patched, cache = self.patched, kwargs.get("past_key_values")
        if kwargs.get(patched.features) is not None:
            _check_prefill(kwargs)
            audio = kwargs["is_continuous_mask"].bool()
            positions = kwargs.get("position_ids")
            if positions is None:
                positions = torch.arange(audio.shape[1], device=audio.device)[None]
            return _Prefill(patched, audio, None, positions=positions)
        if isinstance(cache, PooledKeys):
            check_owner(cache.pooled_by, patched)
            if kwargs.get("position_ids") is None:
                raise ValueError(
                    "position_ids is None while decoding on a pooled cache, which is shorter than the conversation: "
                    "pass the positions, as Kimi-Audio's own generation loop does"
                )
            return _Continuation(patched, states=cache.states)
        if kwargs.get("inputs_embeds") is not None or kwargs.get(AUDIO_POSITIONS) is not None:
            raise NotImplementedError(
                "Kimi-Audio adds its features to embeddings itself: pass input_ids and features, not inputs_embeds"
            )
        return Call(patched)

    def prefill_from(
        self, call: Prefill, layer: int, starts: Tensor, filled: Tensor | None, hidden: Tensor, kwargs: dict[str, Any]
    ) -> None:
        assert call.positions is not None
        if self.patched.positions == "keep":
            call.positions = call.positions.gather(1, starts)
        call.override = {"position_ids": call.positions, "attention_mask": None, "padding_mask": None}
        call.states[layer] = SiteState(call.caller_audio.shape[1] - starts.shape[1], None, call.shift, None)

    def continue_from(self, call: Continuation, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> None:
        shift = call.states[layer].shift
        call.override = {"attention_mask": None, "padding_mask": None}
        if shift is not None:
            call.override["position_ids"] = kwargs["position_ids"] - shift

    def end(self, call: PooledCall, output: Any) -> Any:
        if not isinstance(call, LayerCall) or not call.states:
            return output
        if isinstance(output, tuple):
            return tuple(self._adopt(part, call) if _is_cache(part) else part for part in output)
        if output.past_key_values is not None:
            output.past_key_values = self._adopt(output.past_key_values, call)
        return output

    def _adopt(self, cache: Any, call: LayerCall) -> PooledKeys:
        keys = PooledKeys(cache)
        keys.states, keys.pooled_by = call.states, self.patched.pooled_by
        return keys

    def more_hooks(self) -> Iterator[tuple[nn.Module, Hook]]:
        decoder = self.patched.decoder
        yield decoder.layers[self._branch_layer], self._note_branch
        for layer in decoder.mimo_layers:
            yield layer, self._at_branch
        for layer in (*decoder.layers, *decoder.mimo_layers):
            yield layer.self_attn.rotary_emb, self._lengthen

    def depths(self) -> list[int]:
        return super().depths() + [self._branch_layer] * len(self.patched.decoder.mimo_layers)

    @property
    def _branch_layer(self) -> int:
        """The layer whose output the audio stream's layers begin with."""
        return self.patched.model.config.kimia_mimo_transformer_from_layer_index

    def _note_branch(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = current(self.patched)
        if isinstance(call, _WithBranch):
            call.branch = call.override

    def _at_branch(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = current(self.patched)
        return (args, kwargs | call.branch) if isinstance(call, _WithBranch) else None

    def _lengthen(self, table: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The positions of pooled keys reach as far as those of the caller's tokens."""
        call = current(self.patched)
        if not isinstance(call, LayerCall) or not call.states:
            return None
        return args, kwargs | {"seq_len": kwargs["seq_len"] + max(state.removed for state in call.states.values())}


def _check_prefill(kwargs: dict[str, Any]) -> None:
    ids, marked, mask = (kwargs.get(name) for name in ("input_ids", "is_continuous_mask", "attention_mask"))
    if ids is None or marked is None:
        raise NotImplementedError(
            "audio positions are found in is_continuous_mask beside input_ids, and this call lacks one of them: "
            "pass both, or remove the patch"
        )
    if ids.shape[0] != 1 or (mask is not None and not bool(mask.all())):
        raise NotImplementedError(
            f"Kimi-Audio takes one conversation a call, without padding, got a batch of {ids.shape[0]}: its code "
            "lays the features of all rows over one another"
        )
    if kwargs.get("past_key_values") is not None:
        raise NotImplementedError(
            "audio on top of a filled KV cache is not supported: prefill the whole conversation afresh"
        )
    if kwargs.get("labels") is not None:
        raise NotImplementedError(
            "labels cannot be used: Kimi-Audio's code computes no loss. Compute it from the logits yourself"
        )


def _is_cache(part: Any) -> bool:
    """Hidden states are a tuple too, but of tensors."""
    return isinstance(part, tuple) and isinstance(next(iter(part), None), tuple)
