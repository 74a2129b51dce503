"""Uniform Drop: exactly the budget, at equal strides, text untouched, whatever the padding."""

from __future__ import annotations

import pytest
import torch

from affinity_pool.study.reductions.strides import uniform_drop


@pytest.mark.parametrize("left_padded", [False, True])
def test_keeps_exactly_the_budget_and_every_text_row(left_padded: bool) -> None:
    x = torch.arange(2 * 10, dtype=torch.float32).view(2, 10, 1) + 1
    lengths = torch.tensor([10, 7], dtype=torch.int32)
    valid = torch.arange(10) < lengths[:, None]
    if left_padded:
        valid = valid.flip(1)
    audio = valid & (torch.arange(10) % 5 != 0)
    kept = torch.tensor([3, 2])
    out = uniform_drop(kept)(x, lengths, mergeable=audio, left_padded=left_padded)

    text = (valid & ~audio).sum(1)
    assert out.lengths.tolist() == (text + kept).tolist()
    for b in range(2):
        there = out.counts[b].bool()
        width = int(out.lengths[b])
        assert there.tolist() == ([False] * (10 - width) + [True] * width if left_padded else there.tolist())
        survivors = out.segment_ids[b] >= 0
        assert survivors[valid[b] & ~audio[b]].all()
        assert torch.equal(out.values[b, out.segment_ids[b][survivors].long()], x[b, survivors])
        assert not out.values[b, ~there].any()


def test_strides_are_equal() -> None:
    out = uniform_drop(torch.tensor([4]))(torch.ones(1, 12, 1))
    kept = (out.segment_ids[0] >= 0).nonzero().flatten()
    assert kept.diff().tolist() == [3, 3, 3]


def test_a_budget_above_the_rows_keeps_them_all() -> None:
    x = torch.randn(1, 5, 2)
    out = uniform_drop(torch.tensor([9]))(x)
    assert torch.equal(out.values, x)
    assert out.segment_ids.tolist() == [[0, 1, 2, 3, 4]]
