"""``affinity_pool.patch``: pool the audio tokens of a speech language model while it runs, by forward pre-hooks alone.

A hook on the model notes what the call is: a prefill with audio, the continuation of a pooled cache, or neither, and
then every other hook steps aside. A hook on the layer of each site pools the hidden states (prefill) or finds the shape
of the pooled keys (continuation) and decides the mask, positions and rotary phases that hold from there on; the layers
up to the next site take them over. Without a KV cache each step is a prefill: causality makes it pool the same groups.
"""

from __future__ import annotations

import inspect
import os
import sys
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from .cache import PooledCache, SiteState, cache_of
from .columns import first_columns, renumber, take_phases
from .families import Family, family_of
from .masks import attention_mask, is_supported
from .sites import Positions, Site, resolve
from .stats import PrefillStats, SiteRecord, prefill_stats

HookResult = tuple[tuple[Any, ...], dict[str, Any]] | None

_patched: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()


def patch(
    model: torch.nn.Module,
    sites: str | os.PathLike[str] | Iterable[Site] = "aggressive",
    *,
    positions: Positions | None = None,
) -> Handle:
    """Pool the audio tokens of ``model`` at each of ``sites``, in ``model(...)`` and ``model.generate(...)``.

    Args:
        model: a Hugging Face speech language model of a family in :data:`affinity_pool.models.FAMILIES`.
        sites: a preset of the paper (``"aggressive"``, ``"conservative"``; its thresholds are for Qwen2-Audio, its deep
            layer, 29 of 32, scales with the depth), a list of :class:`Site`, a JSON file, or a checkpoint folder that
            holds ``affinity_pool.json``.
        positions: the rotary phase of a merged token: that of its first token (``"keep"``), or renumbered from the site
            on (``"compact"``). None: what the JSON file says, else ``"keep"``.

    Returns:
        :class:`Handle`: a context manager whose end, like its ``remove()``, restores the model exactly; ``stats`` tells
        what the last prefill did.

    Batches must be padded on the left, as ``generate`` needs them anyway; ``output_hidden_states`` then has a different
    width from each site on, and so have the logits of a prefill: their last column is the last token's.
    """
    family = family_of(model)
    if model in _patched:
        raise RuntimeError("this model is patched already: call remove() on its handle first, or leave its with block")
    decoder = family.decoder(model)
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
    found, from_file = resolve(sites, len(decoder.layers))
    chosen: Positions = positions or from_file or "keep"
    if chosen not in ("keep", "compact"):
        raise ValueError(f"positions must be 'keep' or 'compact', got {chosen!r}")
    return (family.handle or Handle)(model, family, decoder, found, chosen)


@dataclass
class Prefill:
    """A running forward that carries audio, as far as the layers have come."""

    audio: Tensor
    """``[B, T]`` bool, audio tokens among the columns entering the next site."""
    mask: Tensor | None
    caller_audio: Tensor
    lengths: Tensor | None = None
    before: list[int] | None = None
    positions: Tensor | None = None
    """``[..., B or 1, T]`` what the rotary embedding was given, of the columns entering the next site."""
    shift: Tensor | None = None
    """``[B, 1]`` how many of the caller's columns the sites so far took away, where positions follow; else None."""
    override: dict[str, Any] = field(default_factory=dict)
    records: list[SiteRecord] = field(default_factory=list)


@dataclass
class Continuation:
    """A running forward on top of a pooled cache."""

    cache: PooledCache
    turn: Tensor | None
    positions: Tensor | None = None
    """``[..., B or 1, queries]`` what the rotary embedding was given."""
    override: dict[str, Any] = field(default_factory=dict)


class Handle:
    """A patched model. Use as a context manager, or call :meth:`remove`."""

    def __init__(self, model: Any, family: Family, decoder: Any, sites: tuple[Site, ...], positions: Positions) -> None:
        self.model, self.sites, self.positions = model, sites, positions
        self._family, self._decoder = family, decoder
        self._parameters = list(inspect.signature(model.forward).parameters)
        self._forward: Prefill | Continuation | None = None
        self._records: list[SiteRecord] = []
        self._hooks = [
            model.register_forward_pre_hook(self._enter, with_kwargs=True),
            model.register_forward_hook(self._leave, always_call=True),
        ]
        site_of = {site.layer: site for site in sites}
        for index, layer in enumerate(decoder.layers[sites[0].layer :], sites[0].layer):
            hook = partial(self._at_site, site_of[index]) if index in site_of else self._after_site
            self._hooks.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        self._watch_positions()
        _patched.add(model)

    def remove(self) -> None:
        """Take all hooks off: the model is what it was. KV caches it pooled cannot be continued any more."""
        for hook in self._hooks:
            hook.remove()
        if self._hooks:
            self._hooks = []
            _patched.discard(self.model)

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    @property
    def running(self) -> bool:
        """Whether a forward that pools, or continues a pooled cache, is under way."""
        return self._forward is not None

    @property
    def stats(self) -> PrefillStats | None:
        """The last prefill that carried audio; None before the first. Reading it waits for the device."""
        if not self._records:
            return None
        config = self._decoder.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        element = self._decoder.dtype.itemsize
        return prefill_stats(self._records, self._depths(), 2 * config.num_key_value_heads * head_dim * element)

    def _depths(self) -> list[int]:
        """For each layer that keeps keys, the last layer whose site its input has passed."""
        return list(range(len(self._decoder.layers)))

    # The call as a whole.

    def _enter(self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._forward is not None:
            raise RuntimeError(
                "a forward of this patched model started inside another one (a hook or a second thread?): "
                "run one forward at a time, or patch a copy of the model for each thread"
            )
        if args:
            kwargs = {**dict(zip(self._parameters, args, strict=False)), **kwargs}
        self._forward = self._begin(kwargs)

    def _begin(self, kwargs: dict[str, Any]) -> Prefill | Continuation | None:
        """What a call with these arguments is; None where there is nothing to do."""
        ids, cache = kwargs.get("input_ids"), cache_of(kwargs)
        if kwargs.get(self._family.features) is not None and (ids is None or ids.shape[1] > 1):
            self._check_prefill(kwargs)
            audio = kwargs["input_ids"] == self._family.audio_token_id(self.model.config)
            return Prefill(audio, kwargs.get("attention_mask"), audio)
        if isinstance(cache, PooledCache):
            cache.check_owner(self)
            tokens = ids if ids is not None else kwargs["inputs_embeds"]
            return Continuation(cache, _padded_turn(kwargs.get("attention_mask"), tokens.shape[1]))
        return None

    def _leave(self, model: torch.nn.Module, args: Any, output: Any) -> Any:
        if isinstance(self._forward, Prefill) and output is not None:  # None: the call raised
            self._records = self._forward.records
        self._forward = None

    def _watch_positions(self) -> None:
        """Renumbering needs the positions behind the phases, which layers are not always told (multimodal RoPE)."""

        def note(rotary: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._forward is not None and self._forward.positions is None:  # else the call is our own
                self._forward.positions = args[1] if len(args) > 1 else kwargs["position_ids"]

        if self.positions == "compact":
            self._hooks.append(self._decoder.rotary_emb.register_forward_pre_hook(note, with_kwargs=True))

    def _check_prefill(self, kwargs: dict[str, Any]) -> None:
        """Refuse, before anything is computed, what a prefill with audio cannot do while it is pooled."""
        mask, cache = kwargs.get("attention_mask"), cache_of(kwargs)
        implementation = self._decoder.config._attn_implementation
        if cache is not None:
            _check_cache(cache, _longest(self._decoder))
        if kwargs.get("input_ids") is None:
            raise NotImplementedError(
                "audio positions are found in input_ids, which this call does not pass: pass input_ids instead of "
                "inputs_embeds, or remove the patch"
            )
        if kwargs.get("labels") is not None:
            raise NotImplementedError(
                "labels cannot be used while pooling: the logits are shorter than the labels. "
                "Compute the loss from the logits yourself, or remove the patch"
            )
        if not is_supported(implementation):
            raise NotImplementedError(
                f"attention implementation {implementation!r} is not supported: "
                "call model.set_attn_implementation('sdpa'), or 'eager' or 'flash_attention_2'"
            )
        if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
            raise NotImplementedError(
                "attention_mask must be 2-D, [batch, tokens], while pooling: the patch builds the causal masks itself"
            )
        if self._decoder.training and getattr(self._decoder.layers[0], "gradient_checkpointing", False):
            raise NotImplementedError(
                "gradient checkpointing would run the layers a second time without their pooled masks: "
                "call model.gradient_checkpointing_disable(), or model.eval()"
            )

    # One layer.

    def _at_site(self, site: Site, layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> HookResult:
        forward = self._forward
        if forward is None:
            return None
        if isinstance(forward, Prefill):
            hidden = self._pool(forward, site, args[0], kwargs)
        else:
            hidden = args[0]
            if site.layer in forward.cache.sites:
                self._continue(forward, site.layer, hidden, kwargs)
        if not forward.override:
            return None
        kwargs.update(forward.override)
        return (hidden, *args[1:]), kwargs

    def _after_site(self, layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> HookResult:
        if self._forward is None or not self._forward.override:
            return None
        kwargs.update(self._forward.override)
        return args, kwargs

    def _pool(self, run: Prefill, site: Site, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Pool what enters the layer; unless nothing merged in any row, replace what goes with it from here on."""
        columns = hidden.shape[1]
        if not run.records:
            self._meet_caller(run, hidden)
        pooled = site.reduce(
            hidden,
            run.lengths,
            mergeable=run.audio,
            threshold=site.threshold,
            window=site.window,
            left_padded=True,
        )
        before, after = _tokens(run, pooled.lengths, columns)
        run.records.append(SiteRecord(site.layer, run.audio, before, after, pooled.segment_ids, pooled.counts))
        run.before = before
        if after == before:
            return hidden

        width = max(after)
        padded = min(after) < width
        arange = torch.arange(columns, device=hidden.device)
        first = first_columns(pooled.segment_ids, arange)[:, columns - width :]
        if self.positions == "compact":
            gone = (columns if run.lengths is None else run.lengths[:, None]) - pooled.lengths[:, None]
            run.positions = renumber(run.positions, first, arange[columns - width :], gone)
            run.shift = gone if run.shift is None else run.shift + gone
        self._replace(run, site.layer, first, pooled.lengths if padded else None, hidden, kwargs)
        run.audio = run.audio.gather(1, first)
        run.lengths, run.before = pooled.lengths if padded else None, after
        return pooled.values[:, columns - width :]

    def _replace(
        self,
        run: Prefill,
        layer: int,
        first: Tensor,
        lengths: Tensor | None,
        hidden: Tensor,
        kwargs: dict[str, Any],
    ) -> None:
        """Decide what layers get from ``layer`` on, and leave in the cache what decoding needs to know.

        ``first`` is ``[B, width]``, the column each pooled one begins at; ``lengths`` is None where none is padding.
        """
        width = first.shape[1]
        position_ids = torch.arange(width, device=hidden.device)[None]
        valid = None
        if lengths is not None:
            position_ids = position_ids - (width - lengths[:, None])
            valid = position_ids >= 0
            position_ids = position_ids.clamp(min=0)
        if self.positions == "keep":
            given = run.override.get("position_embeddings", kwargs["position_embeddings"])
            cos_sin = tuple(take_phases(phase, first) for phase in given)
        else:
            cos_sin = self._decoder.rotary_emb(hidden, run.positions)
        implementation = self._decoder.config._attn_implementation
        run.override = {
            "attention_mask": attention_mask(implementation, valid, width, width, hidden),
            "position_ids": position_ids,  # from 0 in both modes: gaps make FlashAttention see packed sequences
            "position_embeddings": cos_sin,
        }
        cache = cache_of(kwargs)
        if cache is not None:
            cache = PooledCache.adopt(cache, self, run.caller_audio)
            cache.sites[layer] = SiteState(run.caller_audio.shape[1] - width, valid, run.shift)

    def _meet_caller(self, run: Prefill, hidden: Tensor) -> None:
        """At the first site the columns must still be the caller's, and are as long as the attention mask says."""
        columns, device = hidden.shape[1], hidden.device
        if run.audio.shape[1] != columns:
            raise NotImplementedError(
                f"input_ids have {run.audio.shape[1]} tokens but the decoder got {columns}: the model expanded the "
                "audio placeholders itself. Let the processor expand them, one audio token for each audio embedding"
            )
        run.audio = run.caller_audio = run.audio.to(device)
        if run.mask is not None:
            if run.mask.shape != run.audio.shape:
                raise ValueError(
                    f"attention_mask has shape {list(run.mask.shape)}, input_ids {list(run.audio.shape)}: "
                    "a prefill with audio needs one entry for each token"
                )
            run.mask = run.mask.to(device)
            run.lengths = run.mask.sum(1, dtype=torch.int32)

    def _continue(self, run: Continuation, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> None:
        """Find the mask, and the phases if positions were renumbered, of the layers from ``layer`` on."""
        state = run.cache.sites[layer]
        queries = hidden.shape[1]
        keys = run.cache.columns(layer) + queries
        valid = state.valid_keys(keys, run.turn)
        mask = attention_mask(self._decoder.config._attn_implementation, valid, queries, keys, hidden)
        if mask is None and kwargs["attention_mask"] is None and state.shift is None:
            run.override = {}
            return
        run.override = {"attention_mask": mask}
        if state.shift is not None:
            assert run.positions is not None
            run.override["position_embeddings"] = self._decoder.rotary_emb(hidden, run.positions - state.shift)


def _longest(decoder: Any) -> int:
    """Tokens the decoder can hold; a sliding window that is no narrower never cuts anything."""
    return getattr(decoder.config, "max_position_embeddings", sys.maxsize)


def _check_cache(cache: Any, longest: int) -> None:
    def grows(layer: Any) -> bool:
        return type(layer) is DynamicLayer or (
            isinstance(layer, DynamicLayer) and getattr(layer, "sliding_window", 0) >= longest
        )

    plain = type(cache) in (DynamicCache, PooledCache) and all(map(grows, cache.layers))
    if not plain or getattr(cache, "offloading", False):
        kind = "an offloaded one" if plain else type(cache).__name__
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


def _padded_turn(mask: Tensor | None, queries: int) -> Tensor | None:
    """The mask of this call's own tokens if some are padding: a second turn of a batch, padded in the middle.

    A single token never is: not looking keeps decoding free of host synchronisation.
    """
    if mask is None or queries == 1:
        return None
    turn = mask[:, -queries:].bool()
    return None if bool(turn.all()) else turn


def _tokens(run: Prefill, lengths: Tensor, columns: int) -> tuple[list[int], list[int]]:
    """Tokens of each row before and after pooling: the prefill's one host synchronisation at a site."""
    if run.before is not None:
        return run.before, lengths.tolist()
    if run.mask is None:
        return [columns] * lengths.shape[0], lengths.tolist()
    assert run.lengths is not None
    figures = torch.cat([run.lengths, lengths]).tolist()
    before, after = figures[: len(figures) // 2], figures[len(figures) // 2 :]
    if min(before) < columns and bool((run.mask[:, 1:] < run.mask[:, :-1]).any()):
        raise NotImplementedError(
            "the attention mask has zeros after its ones (right padding, or padding on both sides): "
            "pad on the left, as generate() needs it (processor.tokenizer.padding_side = 'left')"
        )
    return before, after
