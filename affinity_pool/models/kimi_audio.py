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

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .cache import PooledBy, SiteState, check_owner
from .calls import Call, Continuation, Prefill, current, innermost
from .families import FAMILIES, Family, language_model
from .forward import POSITIONS
from .patch import Handle


class PooledKeys(tuple[tuple[Tensor, Tensor], ...]):
    """A KV cache of Kimi-Audio that a patched model has pooled. Only a model patched alike can continue it."""

    sites: dict[int, SiteState]
    pooled_by: PooledBy

    def __getitem__(self, index: Any) -> Any:
        check_owner(self.pooled_by, innermost())
        return super().__getitem__(index)


@dataclass
class KimiPrefill(Prefill):
    """A running forward with audio; its caches are returned, not filled in place."""

    sites: dict[int, SiteState] = field(default_factory=dict)
    branch: dict[str, Any] = field(default_factory=dict)
    """What holds for the audio stream's layers: the override at the layer they begin with."""


@dataclass
class KimiContinuation(Continuation):
    """A running forward on top of pooled keys."""

    branch: dict[str, Any] = field(default_factory=dict)

    @property
    def sites(self) -> dict[int, SiteState]:
        return self.cache.sites


class KimiHandle(Handle):
    """A patched Kimi-Audio. ``stats`` counts the keys of the audio stream's layers too."""

    def _install(self) -> None:
        super()._install()
        self._changes.hook(self._decoder.layers[self._branch_layer], self._note_branch)
        for layer in self._decoder.mimo_layers:
            self._changes.hook(layer, self._at_branch)
        for layer in (*self._decoder.layers, *self._decoder.mimo_layers):
            self._changes.hook(layer.self_attn.rotary_emb, self._lengthen)

    @property
    def _branch_layer(self) -> int:
        """The layer whose output the audio stream's layers begin with."""
        return self.model.config.kimia_mimo_transformer_from_layer_index

    def _depths(self) -> list[int]:
        return super()._depths() + [self._branch_layer] * len(self._decoder.mimo_layers)

    def _watch_positions(self) -> None:
        """Layers are told their positions."""

    # The call as a whole.

    def _begin(self, kwargs: dict[str, Any]) -> Call:
        cache = kwargs.get("past_key_values")
        if kwargs.get(self._family.features) is not None:
            self._check_prefill(kwargs)
            audio = kwargs["is_continuous_mask"].bool()
            positions = kwargs.get("position_ids")
            if positions is None:
                positions = torch.arange(audio.shape[1], device=audio.device)[None]
            return KimiPrefill(audio, None, audio, positions=positions)
        if isinstance(cache, PooledKeys):
            check_owner(cache.pooled_by, self)
            if kwargs.get("position_ids") is None:
                raise ValueError(
                    "position_ids is None while decoding on a pooled cache, which is shorter than the conversation: "
                    "pass the positions, as Kimi-Audio's own generation loop does"
                )
            return KimiContinuation(cache, None)  # type: ignore[arg-type]  # has the sites, and no more is asked of it
        if kwargs.get("inputs_embeds") is not None or kwargs.get(POSITIONS) is not None:
            raise NotImplementedError(
                "Kimi-Audio adds its features to embeddings itself: pass input_ids and features, not inputs_embeds"
            )
        return Call()

    def _check_prefill(self, kwargs: dict[str, Any]) -> None:
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
                "labels cannot be used while pooling: the logits are shorter than the labels. "
                "Compute the loss from the logits yourself, or remove the patch"
            )

    def _end(self, call: Call, output: Any) -> Any:
        output = super()._end(call, output)
        sites = _sites(call)
        if not sites:
            return output
        if isinstance(output, tuple):
            return tuple(self._adopt(part, sites) if _is_cache(part) else part for part in output)
        if output.past_key_values is not None:
            output.past_key_values = self._adopt(output.past_key_values, sites)
        return output

    def _adopt(self, cache: Any, sites: dict[int, SiteState]) -> PooledKeys:
        keys = PooledKeys(cache)
        keys.sites, keys.pooled_by = sites, self.pooled_by
        return keys

    # One layer.

    def _replace(
        self,
        run: Prefill,
        layer: int,
        first: Tensor,
        lengths: Tensor | None,
        hidden: Tensor,
        kwargs: dict[str, Any],
    ) -> None:
        assert isinstance(run, KimiPrefill)
        assert run.positions is not None
        if self.positions == "keep":
            run.positions = run.positions.gather(1, first)
        run.override = {"position_ids": run.positions, "attention_mask": None, "padding_mask": None}
        run.sites[layer] = SiteState(run.caller_audio.shape[1] - first.shape[1], None, run.shift)

    def _continue(self, run: Continuation, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> None:
        shift = run.cache.sites[layer].shift
        run.override = {"attention_mask": None, "padding_mask": None}
        if shift is not None:
            run.override["position_ids"] = kwargs["position_ids"] - shift

    def _note_branch(self, layer: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        call = current(self)
        if isinstance(call, (KimiPrefill, KimiContinuation)):
            call.branch = call.override

    def _at_branch(self, layer: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        call = current(self)
        return args, kwargs | (call.branch if isinstance(call, (KimiPrefill, KimiContinuation)) else {})

    def _lengthen(self, table: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """The positions of pooled keys reach as far as those of the caller's tokens."""
        removed = max((state.removed for state in _sites(current(self)).values()), default=0)
        return args, kwargs | {"seq_len": kwargs["seq_len"] + removed}


def _sites(call: Call | None) -> dict[int, SiteState]:
    return call.sites if isinstance(call, (KimiPrefill, KimiContinuation)) else {}


def _is_cache(part: Any) -> bool:
    """Hidden states are a tuple too, but of tensors."""
    return isinstance(part, tuple) and isinstance(next(iter(part), None), tuple)


def _no_token(config: Any) -> int:
    raise NotImplementedError("Kimi-Audio marks audio by is_continuous_mask, not by an id in input_ids")


FAMILIES["kimi_audio"] = Family(
    "whisper_input_feature",
    language_model,
    _no_token,
    token_seconds=lambda config: 0.08,  # four of Whisper's embeddings, side by side
    encoder=lambda model: None,  # Whisper belongs to the code that makes the prompt
    handle=KimiHandle,
)
