"""A prefill at a site: what enters the layer is pooled, and what goes with it follows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .calls import Calls
from .running import Prefill
from .sites import Site
from .stats import SiteRecord


def pool_at_site(calls: Calls, call: Prefill, site: Site, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """Pool what enters the layer; unless nothing merged in any row, replace what goes with it from here on.

    ``hidden`` is ``[B, T, D]``, padded on the left, and so is what is returned, as wide as its longest row; ``kwargs``
    are the keyword arguments of the layer.
    """
    columns = hidden.shape[1]
    if not call.records:
        _check_caller(call, hidden)
    pooled = site.reduce(hidden, call.lengths, call.audio)
    before, after = _tokens(call, pooled.lengths, columns)
    call.records.append(SiteRecord(site.layer, call.audio, before, after, pooled.segment_ids, pooled.counts))
    call.tokens = after
    if after == before:
        return hidden

    width = max(after)
    lengths = pooled.lengths if min(after) < width else None
    arange = torch.arange(columns, device=hidden.device)
    starts = _group_starts(pooled.segment_ids, arange)[:, columns - width :]
    if calls.patched.positions == "compact":
        gone = (columns if call.lengths is None else call.lengths[:, None]) - pooled.lengths[:, None]
        call.positions = _renumbered(call.positions, starts, arange[columns - width :], gone)
        call.shift = gone if call.shift is None else call.shift + gone
    calls.prefill_from(call, site.layer, starts, lengths, hidden, kwargs)
    call.audio, call.lengths = call.audio.gather(1, starts), lengths
    return pooled.values[:, columns - width :]


def _check_caller(call: Prefill, hidden: Tensor) -> None:
    """At the first site the columns must still be the caller's, and are as long as the attention mask says."""
    columns, device = hidden.shape[1], hidden.device
    if call.audio.shape[1] != columns:
        raise NotImplementedError(
            f"input_ids have {call.audio.shape[1]} tokens but the decoder got {columns}: the model expanded the "
            "audio placeholders itself. Let the processor expand them, one audio token for each audio embedding"
        )
    call.audio = call.caller_audio = call.audio.to(device)
    if call.mask is not None:
        if call.mask.shape != call.audio.shape:
            raise ValueError(
                f"attention_mask has shape {list(call.mask.shape)}, input_ids {list(call.audio.shape)}: "
                "a prefill with audio needs one entry for each token"
            )
        call.mask = call.mask.to(device).bool()  # models take any number but 0 for a token
        call.lengths = call.mask.sum(1, dtype=torch.int32)


def _tokens(call: Prefill, lengths: Tensor, columns: int) -> tuple[list[int], list[int]]:
    """Tokens of each row before and after pooling: the prefill's one host synchronisation at a site."""
    if call.tokens is not None:
        return call.tokens, lengths.tolist()
    if call.mask is None:
        return [columns] * lengths.shape[0], lengths.tolist()
    assert call.lengths is not None
    figures = torch.cat([call.lengths, lengths]).tolist()
    before, after = figures[: len(figures) // 2], figures[len(figures) // 2 :]
    if min(before) < columns and bool((call.mask[:, 1:] < call.mask[:, :-1]).any()):
        raise NotImplementedError(
            "the attention mask has zeros after its ones (right padding, or padding on both sides): "
            "pad on the left, as generate() needs it (processor.tokenizer.padding_side = 'left')"
        )
    return before, after


def _group_starts(segment_ids: Tensor, arange: Tensor) -> Tensor:
    """For each column of a reduction's output the first input column that went there; any where none did."""
    batch, columns = segment_ids.shape
    starts = arange.new_full((batch, columns + 1), columns - 1)
    starts.scatter_reduce_(1, segment_ids.long() + 1, arange.expand(batch, -1), "amin")
    return starts[:, 1:]  # column 0 collected the ids -1


def _renumbered(positions: Tensor | None, starts: Tensor, columns: Tensor, gone: Tensor) -> Tensor:
    """Positions ``[..., B, W]`` of pooled columns, each as far to the left as columns before it have gone.

    ``positions [..., B or 1, T]`` are of the columns pooled, ``starts [B, W]`` says where a pooled column begins,
    ``columns [W]`` where it lies now, and ``gone [B, 1]`` how many columns the row lost: all columns end at the right.
    """
    assert positions is not None
    axes = positions.shape[:-2]
    kept = positions.expand(*axes, starts.shape[0], -1).gather(-1, starts.expand(*axes, *starts.shape))
    return kept - (gone - (columns - starts))
