"""A prefill at a site: what enters the layer is pooled, and what goes with it follows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .calls import Calls
from .running import Prefill
from .sites import Site
from .stats import SiteRecord


def pool(calls: Calls, run: Prefill, site: Site, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """Pool what enters the layer; unless nothing merged in any row, replace what goes with it from here on.

    Args:
        calls: the model's, told what has merged.
        run: where the call is; it is moved on.
        site: where and how to pool.
        hidden: ``[B, T, D]`` what enters the layer, padded on the left.
        kwargs: the keyword arguments of the layer.

    Returns:
        ``[B, width, D]`` what enters it instead, as wide as the longest row.
    """
    columns = hidden.shape[1]
    if not run.records:
        _check_caller(run, hidden)
    pooled = site.reduce(hidden, run.lengths, run.audio)
    before, after = _tokens(run, pooled.lengths, columns)
    run.records.append(SiteRecord(site.layer, run.audio, before, after, pooled.segment_ids, pooled.counts))
    run.tokens = after
    if after == before:
        return hidden

    width = max(after)
    lengths = pooled.lengths if min(after) < width else None
    arange = torch.arange(columns, device=hidden.device)
    starts = _group_starts(pooled.segment_ids, arange)[:, columns - width :]
    if calls.patched.positions == "compact":
        gone = (columns if run.lengths is None else run.lengths[:, None]) - pooled.lengths[:, None]
        run.positions = _renumbered(run.positions, starts, arange[columns - width :], gone)
        run.shift = gone if run.shift is None else run.shift + gone
    calls.prefill_from(run, site.layer, starts, lengths, hidden, kwargs)
    run.audio, run.lengths = run.audio.gather(1, starts), lengths
    return pooled.values[:, columns - width :]


def _check_caller(run: Prefill, hidden: Tensor) -> None:
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


def _tokens(run: Prefill, lengths: Tensor, columns: int) -> tuple[list[int], list[int]]:
    """Tokens of each row before and after pooling: the prefill's one host synchronisation at a site."""
    if run.tokens is not None:
        return run.tokens, lengths.tolist()
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
