"""``affinity_pool.patch``: pool the audio tokens of a speech language model while it runs, by forward pre-hooks.

Around the model's forward stands a function that notes what the call is: a prefill with audio, the continuation of a
pooled cache, or neither, and then every hook steps aside. A hook on the layer of each site pools the hidden states
(prefill) or finds the shape of the pooled keys (continuation) and decides the mask, positions and rotary phases that
hold from there on; the layers up to the next site take them over. Without a KV cache each step is a prefill: causality
makes it pool the same groups.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from .cache import PooledBy, PooledCache, SiteState, cache_of
from .calls import Call, Continuation, Prefill, current
from .columns import first_columns, renumber, take_phases
from .families import Family, family_of
from .forward import POSITIONS, Forward, said_positions, with_positions
from .masks import attention_mask
from .modules import Changes, patch_of
from .refusals import check_decoder, check_prefill
from .sites import Positions, Site, check_positions, resolve
from .stats import PrefillStats, SiteRecord, prefill_stats
from .wrappers import unwrapped

HookResult = tuple[tuple[Any, ...], dict[str, Any]] | None


def patch(
    model: torch.nn.Module,
    sites: str | os.PathLike[str] | Iterable[Site] = "aggressive",
    *,
    positions: Positions | None = None,
) -> Handle:
    """Pool the audio tokens of ``model`` at each of ``sites``, in ``model(...)`` and ``model.generate(...)``.

    Args:
        model: a Hugging Face speech language model of a family in :data:`affinity_pool.models.FAMILIES`, also inside
            peft adapters, DistributedDataParallel, torch.compile or averaged weights.
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

    Calls may come from several threads. Embeddings made beforehand are pooled where the caller says which are audio:
    ``model.generate(inputs_embeds=..., audio_positions=mask)``, with a ``[B, T]`` bool mask. Copies and pickles of a
    patched model come out unpatched.

    Raises:
        TypeError, ValueError, FileNotFoundError: an argument makes no sense; the message names it.
        NotImplementedError: this model, or what it is wrapped in, cannot be pooled; the message says why.
        RuntimeError: the model, or one that shares its decoder, is patched already.
    """
    model = unwrapped(model)
    family = family_of(model)
    decoder = family.decoder(model)
    if any(patch_of(module) is not None for module in (model, decoder, *decoder.layers)):
        raise RuntimeError(
            "this model is patched already, or shares its decoder with one that is: call remove() on the handle first, "
            "leave its with block, or call affinity_pool.unpatch(model)"
        )
    check_decoder(decoder)
    found, from_file = resolve(sites, len(decoder.layers))
    chosen = check_positions(positions if positions is not None else from_file or "keep")
    return (family.handle or Handle)(model, family, decoder, found, chosen)


def unpatch(model: torch.nn.Module) -> None:
    """Take the patch off a model whose handle is out of reach; one without a patch is left as it is.

    Args:
        model: what was patched, or a model that shares its decoder, or whatever is around one of them.
    """
    model = unwrapped(model)
    for module in model.modules():
        if (handle := patch_of(module)) is not None:
            handle.remove()


class Handle:
    """A patched model. Use as a context manager, or call :meth:`remove`."""

    def __init__(self, model: Any, family: Family, decoder: Any, sites: tuple[Site, ...], positions: Positions) -> None:
        self.model, self.sites, self.positions = model, sites, positions
        self._family, self._decoder = family, decoder
        self.signature = with_positions(type(model))
        self._records: list[SiteRecord] = []
        self._changes = Changes(self)
        try:
            self._install()
        except BaseException:
            self.remove()
            raise

    def _install(self) -> None:
        self._changes.wrap(self.model, partial(Forward, self))
        self._changes.hook(self._decoder, self._at_decoder)
        site_of = {site.layer: site for site in self.sites}
        first = self.sites[0].layer
        for index, layer in enumerate(self._decoder.layers[first:], first):
            hook = partial(self._at_site, site_of[index]) if index in site_of else partial(self._after_site, index)
            self._changes.hook(layer, hook)
        if self.positions == "compact":
            self._watch_positions()

    def remove(self) -> None:
        """Take the patch off: the model is what it was. KV caches it pooled wait for a patch of the same layers."""
        self._changes.undo()

    def __reduce__(self) -> Any:
        raise TypeError(
            "a handle belongs to the model it patched and cannot be copied or pickled: copy the model, which comes out "
            "unpatched, and patch the copy"
        )

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    @property
    def stands(self) -> bool:
        """Whether the patch has not been removed."""
        return self._changes.stand

    @property
    def running(self) -> bool:
        """Whether a forward that pools, or continues a pooled cache, is under way in this thread."""
        return isinstance(current(self), (Prefill, Continuation))

    @property
    def pooled_by(self) -> PooledBy:
        """What a patch must have in common with this one to continue a cache that this one pooled."""
        return tuple(site.layer for site in self.sites), self.positions

    @property
    def stats(self) -> PrefillStats | None:
        """The last prefill with audio to end, in any thread; None before the first. Reading waits for the device."""
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

    def _begin(self, kwargs: dict[str, Any]) -> Call:
        """What a call with these arguments is."""
        ids, cache = kwargs.get("input_ids"), cache_of(kwargs)
        if self._carries_audio(kwargs):
            if kwargs.get(POSITIONS) is not None:
                raise ValueError(
                    "audio_positions goes with inputs_embeds, and this call has features: pass one of them"
                )
            check_prefill(kwargs, self._family, self._decoder)
            audio = kwargs["input_ids"] == self._family.audio_token_id(self.model.config)
            return Prefill(audio, kwargs.get("attention_mask"), audio)
        audio = said_positions(kwargs)
        if audio is not None:
            check_prefill(kwargs, self._family, self._decoder)
            return Prefill(audio, kwargs.get("attention_mask"), audio)
        if isinstance(cache, PooledCache):
            cache.check_owner(self)
            queries = (kwargs["inputs_embeds"] if ids is None else ids).shape[1]
            mask = kwargs.get("attention_mask")
            if mask is not None and queries > 1:
                cache.check_history(mask[:, :-queries])
            return Continuation(cache, _padded_turn(mask, queries))
        return Call()

    def _carries_audio(self, kwargs: dict[str, Any]) -> bool:
        """Whether a call has features that it uses: assisted decoding may hand them to steps that verify text alone."""
        ids, cache = kwargs.get("input_ids"), cache_of(kwargs)
        if kwargs.get(self._family.features) is None or (ids is not None and ids.shape[1] == 1):
            return False
        if isinstance(cache, PooledCache) and ids is not None:
            return bool((ids == self._family.audio_token_id(self.model.config)).any())
        return True

    def _end(self, call: Call, output: Any) -> Any:
        """Note what a prefill did. A call that hooks have not seen was computed by other layers than were patched."""
        if not isinstance(call, (Prefill, Continuation)):
            return output
        wanted = list(range(self.sites[0].layer, len(self._decoder.layers)))
        if call.passed != wanted and (missed := sorted({*wanted} - {*call.passed})):
            raise RuntimeError(
                f"this call ended without passing {', '.join(f'layer {layer}' for layer in missed[:3])} as patched: "
                "layers were exchanged, or run from code that was compiled or captured without the patch. Patch first "
                "and compile afterwards; torch.compiler.reset() drops what was compiled"
            )
        if isinstance(call, Prefill):
            self._records = call.records
        return output

    def _at_decoder(self, decoder: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if current(self) is None and kwargs.get("inputs_embeds") is not None:
            raise RuntimeError(
                "the decoder of a patched model was called with embeddings, around the model: pooling cannot see which "
                f"of them are audio. Call the {type(self.model).__name__}, with audio_positions if it is to be given "
                "embeddings, or remove the patch. If you did, others have put back a forward from before the patch: "
                "remove it and patch again"
            )

    def _watch_positions(self) -> None:
        """Renumbering needs the positions behind the phases, which layers are not always told (multimodal RoPE)."""

        def note(rotary: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = current(self)
            if isinstance(call, (Prefill, Continuation)) and call.positions is None:  # else the question is our own
                call.positions = args[1] if len(args) > 1 else kwargs["position_ids"]

        self._changes.hook(self._decoder.rotary_emb, note)

    # One layer.

    def _at_site(self, site: Site, layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> HookResult:
        call = current(self)
        if not isinstance(call, (Prefill, Continuation)):
            return None
        hidden = args[0]
        if isinstance(call, Prefill):
            hidden = self._pool(call, site, hidden, kwargs)
        elif site.layer in call.cache.sites:
            self._continue(call, site.layer, hidden, kwargs)
        call.passed.append(site.layer)
        if not call.override:
            return None
        kwargs.update(call.override)
        return (hidden, *args[1:]), kwargs

    def _after_site(
        self, index: int, layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> HookResult:
        call = current(self)
        if call is None:
            return None
        call.passed.append(index)
        if not call.override:
            return None
        kwargs.update(call.override)
        return args, kwargs

    def _pool(self, run: Prefill, site: Site, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Pool what enters the layer; unless nothing merged in any row, replace what goes with it from here on."""
        columns = hidden.shape[1]
        if not run.records:
            self._meet_caller(run, hidden)
        pooled = site.reduce(hidden, run.lengths, run.audio)
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
            cache = PooledCache.adopt(cache, self.pooled_by, run.caller_audio, run.mask)
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
            run.mask = run.mask.to(device).bool()  # models take any number but 0 for a token
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
