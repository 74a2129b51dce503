"""What goes with hidden states once columns have merged: where each began, its rotary phase and its position."""

from __future__ import annotations

from torch import Tensor


def first_columns(segment_ids: Tensor, arange: Tensor) -> Tensor:
    """For each column of a reduction's output the first input column that went there; any where none did."""
    batch, columns = segment_ids.shape
    first = arange.new_full((batch, columns + 1), columns - 1)
    first.scatter_reduce_(1, segment_ids.long() + 1, arange.expand(batch, -1), "amin")
    return first[:, 1:]  # column 0 collected the ids -1


def take_phases(phase: Tensor, index: Tensor) -> Tensor:
    """Rows ``index [B, W]`` of cosines or sines ``[..., B or 1, T, D]``."""
    if phase.shape[-3] == 1:  # one for all rows, as without padding: a copy of whole rows, ten times faster
        return phase.squeeze(-3).index_select(-2, index.flatten()).unflatten(-2, index.shape)
    axes = phase.shape[:-3]  # multimodal RoPE of transformers 4 tells time, height and width apart up to attention
    rows = index.unsqueeze(-1).expand(*axes, *index.shape, phase.shape[-1])
    return phase.expand(*axes, index.shape[0], -1, -1).gather(-2, rows)


def renumber(positions: Tensor | None, first: Tensor, columns: Tensor, gone: Tensor) -> Tensor:
    """Positions ``[..., B, W]`` of pooled columns, each as far to the left as columns before it have gone.

    ``positions [..., B or 1, T]`` are of the columns pooled, ``first [B, W]`` says where a pooled column begins,
    ``columns [W]`` where it lies now, and ``gone [B, 1]`` how many columns the row lost: all columns end at the right.
    """
    assert positions is not None
    axes = positions.shape[:-2]
    kept = positions.expand(*axes, first.shape[0], -1).gather(-1, first.expand(*axes, *first.shape))
    return kept - (gone - (columns - first))
