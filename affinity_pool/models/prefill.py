"""A prefill at a site: what enters the layer is pooled, and what goes with it follows.

The host must know how many tokens are left. At a site with a threshold, or a reduction of one's own, it waits for the
device to tell. At one that keeps a share it counts them, from the runs of audio tokens that enter: they are read when
the call begins, or at the site before if that is not such a one.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..reference import rows_left
from ..results import PooledPadded
from .running import Prefill
from .sites import Site, number
from .stats import SiteRecord

if TYPE_CHECKING:
    from .layers import LayerCalls


def prepare(call: Prefill) -> None:
    """Before anything is computed: check the mask, and what there is to learn.

    Tokens and runs are counted here if the first site keeps a share.
    """
    if call.mask is not None:
        if call.mask.shape != call.audio.shape:
            raise ValueError(
                f"attention_mask has shape {list(call.mask.shape)}, input_ids {list(call.audio.shape)}: "
                "a prefill with audio needs one entry for each token"
            )
        call.mask = call.mask.to(call.audio.device).bool()  # models take any number but 0 for a token
        call.audio = call.caller_audio = call.audio & call.mask
    targets, kept = call.targets, call.patched.sites[0].keep is not None
    if not kept and targets is None and (call.mask is None or not call.either_side):
        return
    mask = torch.ones_like(call.audio) if call.mask is None else call.mask
    wanted = torch.zeros_like(mask) if targets is None else targets.wanted().to(mask.device)
    audio, mask, wanted = torch.stack([call.audio, mask, wanted]).cpu()  # the one read
    if targets is not None:
        targets.check(wanted, audio, mask)
    call.tokens = mask.sum(1).tolist()
    call.left_padded = not (call.either_side and _is_right_padded(mask))
    if call.left_padded:
        _check_padding(mask, call.tokens)
    elif call.last_logits:
        raise NotImplementedError(
            f"logits_to_keep={call.last_logits} of a batch that is padded on the right: once audio has merged, what "
            "was last in its rows is last no more. Leave logits_to_keep out, or pad on the left"
        )
    if kept:
        call.runs = _runs(audio)


def pool_at_site(calls: LayerCalls, call: Prefill, site: Site, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """Pool what enters the layer; unless nothing merged in any row, replace what goes with it from here on.

    ``hidden`` is ``[B, T, D]``, and what is returned is padded on the same side, as wide as its longest row; ``kwargs``
    are the keyword arguments of the layer.
    """
    columns = hidden.shape[1]
    if not call.records:
        _check_caller(call, hidden)
    pooled = site.reduce(hidden, call.lengths, call.audio, left_padded=call.left_padded)
    before, after = _read(call, pooled.lengths, columns) if site.keep is None else _count(call, number(site.keep))
    call.records.append(SiteRecord(site, call.audio, before, after, pooled.segment_ids, pooled.counts))
    call.tokens = after
    values = hidden if after == before else _follow(calls, call, site, pooled, hidden, kwargs)
    upcoming = list(call.sites.values())[len(call.records) :]
    if site.keep is None and upcoming and upcoming[0].keep is not None:
        call.runs = _runs(call.audio)
    return values


def _follow(
    calls: LayerCalls, call: Prefill, site: Site, pooled: PooledPadded, hidden: Tensor, kwargs: dict[str, Any]
) -> Tensor:
    """What is passed on of a site at which tokens have merged; what goes with it is replaced."""
    assert call.tokens is not None
    columns, width = hidden.shape[1], max(call.tokens)
    lengths = pooled.lengths if min(call.tokens) < width else None
    arange = torch.arange(columns, device=hidden.device)
    first = columns - width if call.left_padded else 0
    left = slice(first, first + width)
    starts = _group_starts(pooled.segment_ids, arange)[:, left]
    filled = None
    if lengths is not None:
        filled = arange[:width] >= width - lengths[:, None] if call.left_padded else arange[:width] < lengths[:, None]
    if calls.patched.positions == "compact":
        gone = (columns if call.lengths is None else call.lengths[:, None]) - pooled.lengths[:, None]
        call.positions = _renumbered(call.positions, starts, arange[left], gone if call.left_padded else 0)
        call.shift = gone if call.shift is None else call.shift + gone
    if calls.patched.attention == "proportional":
        call.sizes = _grouped(call.sizes, pooled)[:, left]
    if call.targets is not None:
        call.targets.follow(starts, filled)
    if calls.patched.logits == "expanded":
        went = (pooled.segment_ids.long() - first).cummax(1).values.clamp(min=0)  # with the one before it, if nowhere
        call.went = went if call.went is None else went.gather(1, call.went)
    calls.prefill_from(call, cast(int, site.layer), starts, filled, hidden, kwargs)
    audio = call.audio.gather(1, starts)
    call.audio, call.lengths = audio if filled is None else audio & filled, lengths
    return pooled.values[:, left]


def _check_caller(call: Prefill, hidden: Tensor) -> None:
    """At the first site the columns must still be the caller's. Masks are taken to where the columns are."""
    columns, device = hidden.shape[1], hidden.device
    check_expanded(call.audio.shape[1], columns)
    call.audio = call.caller_audio = call.audio.to(device)
    if call.mask is not None:
        call.mask = call.mask.to(device)
        call.lengths = call.mask.sum(1, dtype=torch.int32)


def check_expanded(tokens: int, columns: int) -> None:
    """Refuse a prompt of so many ``input_ids`` whose decoder is given another number of columns."""
    if tokens != columns:
        raise NotImplementedError(
            f"input_ids have {tokens} tokens but the decoder got {columns}: the model expanded the "
            "audio placeholders itself. Let the processor expand them, one audio token for each audio embedding"
        )


def _count(call: Prefill, keep: float) -> tuple[list[int], list[int]]:
    """Tokens of each row before a site that keeps a share and after it; runs are then those that leave it."""
    assert call.tokens is not None
    assert call.runs is not None
    left = [[rows_left(run, keep) for run in row] for row in call.runs]
    after = [n - sum(run) + sum(kept) for n, run, kept in zip(call.tokens, call.runs, left, strict=True)]
    before, call.runs = call.tokens, left
    return before, after


def _runs(audio: Tensor) -> list[list[int]]:
    """Lengths of the stretches of audio in each row."""
    return [[len(list(run)) for is_audio, run in groupby(row) if is_audio] for row in audio.tolist()]


def _read(call: Prefill, lengths: Tensor, columns: int) -> tuple[list[int], list[int]]:
    """Tokens of each row before and after pooling, as the device knows them: a host synchronisation."""
    if call.tokens is not None:
        return call.tokens, lengths.tolist()
    if call.mask is None:
        return [columns] * lengths.shape[0], lengths.tolist()
    assert call.lengths is not None
    figures = torch.cat([call.lengths, lengths]).tolist()
    before, after = figures[: len(figures) // 2], figures[len(figures) // 2 :]
    _check_padding(call.mask, before)
    return before, after


def _is_right_padded(mask: Tensor) -> bool:
    """Whether there is padding, all of it on the right."""
    return not bool(mask[:, -1].all()) and not bool((mask[:, 1:] > mask[:, :-1]).any())


def _check_padding(mask: Tensor, tokens: list[int]) -> None:
    """Refuse padding that is not on the left; ``tokens`` are those of each row."""
    if min(tokens) < mask.shape[1] and bool((mask[:, 1:] < mask[:, :-1]).any()):
        raise NotImplementedError(
            "the attention mask has zeros after its ones (right padding, or padding on both sides): "
            "pad on the left, as generate() needs it (processor.tokenizer.padding_side = 'left'). All rows may be "
            "padded on the right with labels, and without a KV cache in training mode or with logits='expanded'"
        )


def _grouped(sizes: Tensor | None, pooled: PooledPadded) -> Tensor:
    """``[B, T]`` int32: tokens that each column of a reduction's output stands for, of what those that entered did."""
    if sizes is None:
        return pooled.counts
    grouped = sizes.new_zeros(sizes.shape[0], sizes.shape[1] + 1)
    return grouped.scatter_add_(1, pooled.segment_ids.long() + 1, sizes)[:, 1:]  # column 0 collected the ids -1


def _group_starts(segment_ids: Tensor, arange: Tensor) -> Tensor:
    """For each column of a reduction's output the first input column that went there; any where none did."""
    batch, columns = segment_ids.shape
    starts = arange.new_full((batch, columns + 1), columns - 1)
    starts.scatter_reduce_(1, segment_ids.long() + 1, arange.expand(batch, -1), "amin")
    return starts[:, 1:]  # column 0 collected the ids -1


def _renumbered(positions: Tensor | None, starts: Tensor, columns: Tensor, gone: Tensor | int) -> Tensor:
    """Positions ``[..., B, W]`` of pooled columns, each as far to the left as columns before it have gone.

    ``positions [..., B or 1, T]`` are of the columns pooled, ``starts [B, W]`` says where a pooled column begins,
    ``columns [W]`` where it lies now, and ``gone [B, 1]`` how many columns the row lost where all end at the right, 0
    where all begin at the left.
    """
    assert positions is not None
    axes = positions.shape[:-2]
    kept = positions.expand(*axes, starts.shape[0], -1).gather(-1, starts.expand(*axes, *starts.shape))
    return kept - (gone - (columns - starts))
