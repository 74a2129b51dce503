"""Reductions at a site: plans carried out as written, text untouched, whatever the padding, the dtype and the batch.

The baselines at a budget, ``interpolate`` and ``bipartite_merge`` are held to it here; the plans themselves in
``test_reductions_plans.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from affinity_pool import PooledPadded
from affinity_pool.study.reductions import (
    bipartite_merge,
    interpolate,
    planned,
    random_drop,
    uniform_drop,
    uniform_merge,
)

BUDGETED = {
    "random-drop": lambda kept: random_drop(kept, [11] * len(kept)),
    "uniform-drop": uniform_drop,
    "uniform-merge": uniform_merge,
    "interpolate": interpolate,
    "bipartite-merge": bipartite_merge,
}
budgeted = pytest.mark.parametrize("at_budget", BUDGETED.values(), ids=BUDGETED)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass
class Batch:
    """What a site hands over, and what goes with it in the tests."""

    x: Tensor
    lengths: Tensor
    audio: Tensor
    """``[B, T]``, also true for some padding, which must not matter."""
    left_padded: bool
    kept: Tensor
    """A budget for each row, often above its tokens."""
    plans: list[Tensor]
    """Any plan at all: outputs need not be in order."""

    @property
    def valid(self) -> Tensor:
        column = torch.arange(self.x.shape[1])
        start = self.x.shape[1] - self.lengths if self.left_padded else torch.zeros_like(self.lengths)
        return (column >= start[:, None]) & (column < (start + self.lengths)[:, None])

    def through(self, reduce) -> PooledPadded:
        return reduce(self.x, self.lengths, mergeable=self.audio, left_padded=self.left_padded)

    def audio_of(self, row: int) -> Tensor:
        return self.x[row, self.audio[row] & self.valid[row]]


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    rows, width, dim = draw(st.integers(0, 4)), draw(st.integers(0, 14)), draw(st.integers(1, 4))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    x = torch.randn(rows, width, dim, generator=random).to(draw(st.sampled_from(DTYPES)))
    lengths = torch.randint(0, width + 1, (rows,), generator=random, dtype=torch.int32)
    audio = torch.rand(rows, width, generator=random) < draw(st.sampled_from([0.0, 0.7, 1.0]))
    kept = torch.randint(1, width + 2, (rows,), generator=random)
    batch = Batch(x, lengths, audio, draw(st.booleans()), kept, [])
    for n in (audio & batch.valid).sum(1).tolist():
        batch.plans.append(torch.randint(-1, max(n, 1), (n,), generator=random))
    return batch


def plain_loop(batch: Batch) -> PooledPadded:
    """What carrying out ``batch.plans`` means, token by token."""
    rows, width = batch.audio.shape
    values = torch.zeros_like(batch.x)
    lengths = torch.zeros(rows, dtype=torch.int32)
    ids, counts = torch.full((rows, width), -1, dtype=torch.int32), torch.zeros(rows, width, dtype=torch.int32)
    for b in range(rows):
        groups: dict[object, list[int]] = {}
        plan = iter(batch.plans[b].tolist())
        for t in batch.valid[b].nonzero().flatten().tolist():
            output = next(plan) if batch.audio[b, t] else f"text {t}"
            if output != -1:
                groups.setdefault(output, []).append(t)
        lengths[b] = len(groups)
        start = width - len(groups) if batch.left_padded else 0
        for column, group in enumerate(groups.values(), start):
            mean = sum(batch.x[b, t].double() for t in group) / len(group)
            values[b, column] = mean.to(values.dtype)
            counts[b, column] = len(group)
            ids[b, group] = column
    return PooledPadded(values, lengths, ids, counts)


def assert_same(found: PooledPadded, wanted: PooledPadded) -> None:
    for name, one, other in zip(PooledPadded._fields, found, wanted, strict=True):
        assert one.dtype == other.dtype, name
        assert torch.equal(one, other), name


# Plans, carried out.


@given(batches())
def test_a_plan_does_what_a_plain_loop_does(batch: Batch) -> None:
    assert_same(batch.through(planned(lambda row, n: batch.plans[row])), plain_loop(batch))


@given(batches())
def test_a_plan_is_asked_for_each_row_with_its_audio_tokens(batch: Batch) -> None:
    asked = []
    batch.through(planned(lambda row, n: asked.append((row, n)) or batch.plans[row]))
    assert asked == [(row, len(plan)) for row, plan in enumerate(batch.plans)]


def test_without_lengths_and_mergeable_every_row_is_audio() -> None:
    x = torch.randn(2, 6, 3)
    out = planned(lambda row, n: torch.arange(n) // 2)(x, left_padded=False)
    torch.testing.assert_close(out.values[:, :3], (x[:, ::2] + x[:, 1::2]) / 2)
    assert out.lengths.tolist() == [3, 3]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (torch.arange(4), r"plan of row 0 must be int64 \[5\], .* got torch.int64 \[4\]"),
        (torch.zeros(5), r"plan of row 0 must be int64 \[5\], .* got torch.float32 \[5\]"),
        (torch.tensor([0, 1, 2, 3, 5]), "plan of row 0 must hold -1 to 4, got 0 to 5"),
        (torch.tensor([-2, 1, 2, 3, 4]), "plan of row 0 must hold -1 to 4, got -2 to 4"),
    ],
)
def test_a_plan_that_is_none_for_its_row_is_refused(plan: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planned(lambda row, n: plan)(torch.randn(1, 5, 2))


def test_a_mean_of_large_halves_does_not_overflow() -> None:
    x = torch.full((1, 4, 2), 60000.0, dtype=torch.float16)
    assert torch.equal(uniform_merge(torch.tensor([1]))(x, left_padded=False).values[0, 0], x[0, 0])


def test_a_nan_stays_in_its_own_group() -> None:
    x = torch.ones(1, 6, 2)
    x[0, 2] = float("nan")
    out = uniform_merge(torch.tensor([3]))(x, left_padded=False).values[0, :3]
    assert out.isnan().all(1).tolist() == [False, True, False]


def test_gradients_are_each_tokens_share_of_its_mean() -> None:
    x = torch.randn(1, 4, 1, requires_grad=True)
    planned(lambda row, n: torch.tensor([0, 0, -1, 3]))(x, left_padded=False).values.sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [0.5, 0.5, 0.0, 1.0]


# Every reduction at a budget.


@budgeted
@given(batch=batches())
def test_keeps_exactly_the_budget_and_every_text_row_bit_for_bit(at_budget, batch: Batch) -> None:
    out = batch.through(at_budget(batch.kept))
    text = batch.valid & ~batch.audio
    audio = (batch.valid & batch.audio).sum(1)
    assert torch.equal(out.lengths.long(), text.sum(1) + batch.kept.minimum(audio))
    row, column = text.nonzero(as_tuple=True)
    place = out.segment_ids[row, column].long()
    assert torch.equal(out.values[row, place], batch.x[row, column])
    assert (out.counts[row, place] == 1).all()


@budgeted
@given(batch=batches())
def test_outputs_stand_in_the_order_of_their_first_tokens_beside_the_padding(at_budget, batch: Batch) -> None:
    out = batch.through(at_budget(batch.kept))
    width = batch.x.shape[1]
    for b, length in enumerate(out.lengths.tolist()):
        columns = list(range(width - length, width) if batch.left_padded else range(length))
        ids = out.segment_ids[b].tolist()
        assert list(dict.fromkeys(i for i in ids if i >= 0)) == columns
        assert out.counts[b].nonzero().flatten().tolist() == columns
        assert out.counts[b].tolist() == [ids.count(i) for i in range(width)]
        assert (out.segment_ids[b][~batch.valid[b]] == -1).all()
        assert not out.values[b][out.counts[b] == 0].any()


@budgeted
@given(batch=batches())
def test_a_budget_of_all_tokens_or_more_is_the_identity_bit_for_bit(at_budget, batch: Batch) -> None:
    audio = (batch.valid & batch.audio).sum(1)
    for kept in (audio, audio + 3):
        out = batch.through(at_budget(kept))
        assert torch.equal(out.values, batch.x.masked_fill(~batch.valid.unsqueeze(-1), 0))
        assert torch.equal(out.segment_ids, torch.where(batch.valid, torch.arange(batch.x.shape[1]), -1).int())


@budgeted
@given(batch=batches())
def test_rows_do_not_depend_on_their_batch_mates(at_budget, batch: Batch) -> None:
    out = batch.through(at_budget(batch.kept))
    for b in range(len(batch.x)):
        own = slice(b, b + 1)
        alone = at_budget(batch.kept[own])(
            batch.x[own], batch.lengths[own], mergeable=batch.audio[own], left_padded=batch.left_padded
        )
        assert_same(alone, PooledPadded(*(part[own] for part in out)))


@budgeted
@given(batch=batches())
def test_the_padding_side_shifts_the_result_and_changes_nothing_else(at_budget, batch: Batch) -> None:
    width = batch.x.shape[1]
    shift = (width - batch.lengths) * (1 if batch.left_padded else -1)

    def moved(part: Tensor, by: Tensor) -> Tensor:
        return torch.stack([part[b].roll(-int(n), 0) for b, n in enumerate(by)]) if len(part) else part

    other = Batch(
        moved(batch.x, shift), batch.lengths, moved(batch.audio, shift), not batch.left_padded, batch.kept, []
    )
    one, two = batch.through(at_budget(batch.kept)), other.through(at_budget(batch.kept))
    shorter = (width - one.lengths) * (1 if batch.left_padded else -1)
    assert torch.equal(one.lengths, two.lengths)
    assert torch.equal(moved(one.values, shorter), two.values)
    assert torch.equal(moved(one.counts, shorter), two.counts)
    ids = moved(one.segment_ids, shift)
    assert torch.equal(torch.where(ids >= 0, ids - shorter[:, None], -1), two.segment_ids)


@budgeted
def test_a_budget_that_is_none_is_refused(at_budget) -> None:
    x = torch.randn(2, 4, 3)
    with pytest.raises(ValueError, match=r"kept must be at least 1 .* kept\[1\] = 0 of 4"):
        at_budget(torch.tensor([2, 0]))(x)
    with pytest.raises(ValueError, match=r"x must have the 3 rows .* got 2"):
        at_budget(torch.tensor([2, 2, 2]))(x)
    with pytest.raises(TypeError, match=r"kept must be an int64 or int32 tensor, got torch\.float32"):
        at_budget(torch.tensor([2.0, 2.0]))
    with pytest.raises(ValueError, match=r"kept must have shape \[B\], got \[1, 1\]"):
        at_budget(torch.tensor([[2]]))


# One by one.


def test_uniform_drop_keeps_equal_strides() -> None:
    out = uniform_drop(torch.tensor([4]))(torch.ones(1, 12, 1))
    assert (out.segment_ids[0] >= 0).nonzero().flatten().tolist() == [2, 5, 8, 11]


def test_random_drop_draws_each_row_with_its_own_seed() -> None:
    x = torch.randn(3, 40, 2)
    kept = torch.tensor([10, 10, 10])
    same = random_drop(kept, [5, 6, 5])(x, left_padded=False).segment_ids >= 0
    assert torch.equal(same[0], same[2])
    assert not torch.equal(same[0], same[1])
    again = random_drop(kept, [6, 5, 6])(x, left_padded=False).segment_ids >= 0
    assert torch.equal(again[0], same[1])


def test_random_drop_needs_a_seed_for_each_row() -> None:
    with pytest.raises(ValueError, match="seeds must have one number for each row of kept, got 1 for 2"):
        random_drop(torch.tensor([1, 1]), [0])


def test_interpolation_is_linear_from_the_first_token_to_the_last() -> None:
    x = torch.arange(9.0).view(1, 9, 1) * torch.tensor([1.0, -2.0])
    out = interpolate(torch.tensor([5]))(x, left_padded=False)
    assert out.values[0, :5, 0].tolist() == [0, 2, 4, 6, 8]
    out = interpolate(torch.tensor([4]))(x, left_padded=False)
    torch.testing.assert_close(out.values[0, :4, 0], torch.tensor([0, 8 / 3, 16 / 3, 8]))
    assert (out.segment_ids[0] >= 0).nonzero().flatten().tolist() == [0, 2, 5, 8]  # the tokens at or before these
    torch.testing.assert_close(out.values[0, :4, 1], -2 * out.values[0, :4, 0])


@pytest.mark.parametrize(("tokens", "middle"), [(1, 0.0), (5, 2.0), (6, 2.5)])
def test_a_single_interpolated_token_is_taken_from_the_middle(tokens: int, middle: float) -> None:
    out = interpolate(torch.tensor([1]))(torch.arange(float(tokens)).view(1, tokens, 1), left_padded=False)
    assert out.values[0, 0].tolist() == [middle]
    assert out.segment_ids[0].tolist() == [0 if t == int(middle) else -1 for t in range(tokens)]


@given(batches())
def test_interpolation_agrees_with_a_plain_loop(batch: Batch) -> None:
    out = batch.through(interpolate(batch.kept))
    for b, kept in enumerate(batch.kept.tolist()):
        tokens = batch.audio_of(b).double()
        n = len(tokens)
        places = [j * (n - 1) / (kept - 1) for j in range(kept)] if kept > 1 else [(n - 1) / 2]
        wanted = [
            (1 - p % 1) * tokens[int(p)] + p % 1 * tokens[min(int(p) + 1, n - 1)] for p in (places if kept < n else [])
        ]
        ids = out.segment_ids[b][batch.audio[b] & batch.valid[b]]
        found = out.values[b, ids[ids >= 0].long()]
        if wanted:
            torch.testing.assert_close(found, torch.stack(wanted).to(found.dtype))


def bipartite_loop(tokens: Tensor, keep: int) -> list[list[int]]:
    """Rounds of ToMe on lists of tokens, one pair at a time."""
    groups = [[t] for t in range(len(tokens))]
    while len(groups) > keep:
        means = [tokens[group].double().mean(0) for group in groups]
        pairs = []
        for a in range(0, len(groups), 2):
            partners = [means[b] for b in range(1, len(groups), 2)]
            likeness = [float(torch.cosine_similarity(means[a], b, dim=0).float()) for b in partners]
            if likeness:
                best = max(range(len(likeness)), key=lambda i: (likeness[i], -i))
                pairs.append((-likeness[best], a, 2 * best + 1))
        pairs = sorted(pairs)[: min(len(groups) - keep, len(groups) // 2)]
        for _, a, b in pairs:
            groups[b] = sorted(groups[b] + groups[a])
            groups[a] = []
        groups = sorted(group for group in groups if group)
    return groups


@given(st.integers(0, 10**6), st.integers(1, 24), st.integers(1, 24), st.booleans())
def test_bipartite_merging_agrees_with_a_plain_loop(seed: int, n: int, keep: int, repeated: bool) -> None:
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randn(n, 8, generator=random)
    if repeated:  # ties everywhere
        tokens = tokens[torch.randint(0, n, (n,), generator=random) // 3]
    out = bipartite_merge(torch.tensor([keep]))(tokens[None], left_padded=False)
    groups = bipartite_loop(tokens, keep)
    assert [(out.segment_ids[0] == i).nonzero().flatten().tolist() for i in range(len(groups))] == groups
    wanted = torch.stack([tokens[group].double().mean(0) for group in groups]).float()
    torch.testing.assert_close(out.values[0, : len(groups)], wanted)


def test_bipartite_merging_takes_the_most_similar_pair_wherever_it_is() -> None:
    x = torch.eye(6)[None].clone()
    x[0, 5] = x[0, 2] * 3 + 0.01  # 2 is in A, 5 in B
    out = bipartite_merge(torch.tensor([5]))(x, left_padded=False)
    assert out.segment_ids[0].tolist() == [0, 1, 2, 3, 4, 2]
    torch.testing.assert_close(out.values[0, 2], (x[0, 2] + x[0, 5]) / 2)


def test_equally_similar_tokens_merge_from_the_first_on() -> None:
    x = torch.linspace(0.1, 3, 40).view(1, 40, 1) * torch.randn(33)  # of one direction: cosines 1, but for last bits
    out = bipartite_merge(torch.tensor([36]))(x, left_padded=False)
    assert out.segment_ids[0].tolist() == [0, 0, 0, 1, 0, 2, 0, *range(3, 36)]


def test_tokens_that_are_not_finite_never_merge_and_hinder_no_others() -> None:
    x = torch.randn(1, 9, 4)
    x[0, 1::2] = torch.tensor([float("nan"), 1, 1, 1])
    x[0, 3, 1] = float("inf")
    out = bipartite_merge(torch.tensor([6]))(x, left_padded=False)
    assert out.lengths.tolist() == [6]
    assert (out.counts[0, out.segment_ids[0, 1::2].long()] == 1).all()
    assert bipartite_merge(torch.tensor([2]))(x, left_padded=False).lengths.tolist() == [
        5
    ]  # four strangers, and the rest in one
