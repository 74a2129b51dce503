"""Quotas meet their share, and the plans of the three oracle operators keep what they are told to, in order."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from affinity_pool.study.groups import Span
from affinity_pool.study.reductions import quota, random_drop_plan, uniform_drop_plan, uniform_merge_plan

OPERATORS = {
    "random-drop": lambda units, keep: random_drop_plan(units, keep, seed=7),
    "uniform-drop": uniform_drop_plan,
    "uniform-merge": uniform_merge_plan,
}

lengths = st.lists(st.integers(0, 12), max_size=12)
shares = st.floats(0, 1, exclude_min=True)
operators = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)


def unit_spans(lengths: list[int]) -> list[Span]:
    return [Span(start, end) for start, end in pairwise(accumulate(lengths, initial=0))]


@st.composite
def units_and_budgets(draw: st.DrawFn) -> tuple[list[Span], list[int]]:
    units = unit_spans(draw(lengths))
    return units, draw(st.lists(st.integers(1, 14), min_size=len(units), max_size=len(units)))


# Quotas.


@given(lengths, st.integers(1, 14))
def test_r_tokens_a_unit_or_all_it_has(lengths: list[int], tokens: int) -> None:
    assert quota(unit_spans(lengths), tokens=tokens) == [min(tokens, length) for length in lengths]


@given(lengths, shares)
def test_a_share_is_kept_exactly_by_the_whole_unless_it_is_less_than_a_token_a_unit(
    lengths: list[int], share: float
) -> None:
    kept = quota(unit_spans(lengths), share=share)
    assert sum(kept) == max(round(share * sum(lengths)), sum(length > 0 for length in lengths))
    assert all(min(1, length) <= keep <= length for keep, length in zip(kept, lengths, strict=True))


@given(lengths, shares)
def test_longer_units_keep_more_up_to_rounding(lengths: list[int], share: float) -> None:
    kept = quota(unit_spans(lengths), share=share)
    for one, length in zip(kept, lengths, strict=True):
        for other, longer in zip(kept, lengths, strict=True):
            assert length > longer or one <= other + 1


@given(st.lists(st.integers(4, 12)), st.floats(0.25, 1))
def test_where_no_unit_is_too_short_each_keeps_the_share_up_to_rounding(lengths: list[int], share: float) -> None:
    rate = round(share * sum(lengths)) / max(1, sum(lengths))
    for keep, length in zip(quota(unit_spans(lengths), share=share), lengths, strict=True):
        assert abs(keep - max(1, rate * length)) < 1.5


@given(lengths)
def test_the_whole_share_keeps_everything(lengths: list[int]) -> None:
    assert quota(unit_spans(lengths), share=1.0) == lengths


def test_what_short_units_take_too_much_the_longer_ones_give() -> None:
    assert quota(unit_spans([1, 1, 1, 1, 16, 20]), share=0.25) == [1, 1, 1, 1, 3, 3]


def test_a_unit_of_one_token_keeps_it_where_running_totals_end_in_halves() -> None:
    assert quota(unit_spans([3, 1, 3]), share=0.57) == [2, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "tokens=None and share=None"),
        ({"tokens": 2, "share": 0.5}, "tokens=2 and share=0.5"),
        ({"tokens": 0}, "tokens must be at least 1"),
        ({"share": 0.0}, r"share must be above 0 and at most 1, got 0\.0"),
        ({"share": 25.67}, r"share must be .* got 25\.67"),
        ({"share": float("nan")}, "share must be"),
    ],
)
def test_a_quota_refuses_what_is_no_budget(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quota([Span(0, 4)], **arguments)


# Plans.


@operators
@given(case=units_and_budgets())
def test_every_unit_keeps_its_budget_or_all_it_has_in_order(operator, case) -> None:
    units, keep = case
    plan = operator(units, keep)
    assert plan.dtype == torch.int64
    assert plan.shape == ((units[-1].end,) if units else (0,))
    kept = plan[plan >= 0]
    assert kept.tolist() == sorted(kept.tolist())
    assert kept.unique().tolist() == list(range(sum(min(k, u.end - u.start) for u, k in zip(units, keep, strict=True))))
    for unit, k in zip(units, keep, strict=True):
        own = plan[unit.start : unit.end]
        assert len(own[own >= 0].unique()) == min(k, len(own))


@operators
@given(case=units_and_budgets())
def test_no_output_spans_two_units_and_no_unit_depends_on_others(operator, case) -> None:
    units, keep = case
    plan = operator(units, keep)
    seen: set[int] = set()
    for unit, k in zip(units, keep, strict=True):
        own = plan[unit.start : unit.end]
        mine = set(own[own >= 0].tolist())
        assert not mine & seen
        seen |= mine
        if operator is not OPERATORS["random-drop"]:
            alone = operator([Span(0, len(own))], [k])
            assert torch.equal(torch.where(own >= 0, own - min(mine, default=0), -1), alone)


@given(case=units_and_budgets())
def test_uniform_merge_drops_nothing_and_its_bins_are_as_equal_as_can_be(case) -> None:
    units, keep = case
    plan = uniform_merge_plan(units, keep)
    for unit in units:
        sizes = plan[unit.start : unit.end].unique(return_counts=True)[1].tolist()
        assert max(sizes, default=0) - min(sizes, default=0) <= 1
    assert (plan >= 0).all()


@given(case=units_and_budgets())
def test_drops_leave_one_token_an_output(case) -> None:
    units, keep = case
    for plan in (uniform_drop_plan(units, keep), random_drop_plan(units, keep, seed=3)):
        kept = plan[plan >= 0]
        assert len(kept.unique()) == len(kept)


@given(st.integers(1, 12), st.integers(1, 8))
def test_uniform_drop_has_equal_strides(keep: int, stride: int) -> None:
    kept = (uniform_drop_plan([Span(0, keep * stride)], [keep]) >= 0).nonzero().flatten()
    assert set(kept.diff().tolist()) <= {stride}


def test_random_drop_keeps_the_same_tokens_for_the_same_seed_and_others_for_others() -> None:
    units, keep = unit_spans([30, 40, 30]), [10, 15, 10]
    plan = random_drop_plan(units, keep, seed=1)
    torch.manual_seed(0)
    assert torch.equal(random_drop_plan(units, keep, seed=1), plan)
    assert not torch.equal(random_drop_plan(units, keep, seed=2), plan)


def test_random_drop_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    random_drop_plan([Span(0, 9)], [3], seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_random_drop_at_a_smaller_budget_keeps_a_part_of_what_it_keeps_at_a_larger_one() -> None:
    units = unit_spans([9, 1, 14])
    stays = [random_drop_plan(units, quota(units, tokens=tokens), seed=4) >= 0 for tokens in (2, 5, 11)]
    assert all((more | ~fewer).all() for fewer, more in pairwise(stays))


def test_random_drop_keeps_each_token_of_a_unit_about_equally_often() -> None:
    units, keep, draws = unit_spans([5, 12]), [1, 6], 400
    often = sum((random_drop_plan(units, keep, seed) >= 0).double() for seed in range(draws)) / draws
    wanted = torch.tensor([1 / 5] * 5 + [6 / 12] * 12)
    deviation = (wanted * (1 - wanted) / draws).sqrt()
    assert ((often - wanted).abs() < 4 * deviation).all()


@operators
@pytest.mark.parametrize(
    ("units", "keep", "message"),
    [
        ([Span(0, 3), Span(4, 5)], [1, 1], r"units must follow .* after 3 comes \[4, 5\)"),
        ([Span(1, 3)], [1], r"units must follow .* after 0 comes \[1, 3\)"),
        ([Span(0, 3), Span(3, 2)], [1, 1], r"units must follow"),
        ([Span(0, 3)], [0], r"keep must be at least 1 .* keep\[0\] = 0"),
        ([Span(0, 3)], [1, 1], "keep must have one number for each unit, got 2 for 1"),
    ],
)
def test_units_with_gaps_and_budgets_of_nothing_are_refused(operator, units, keep, message) -> None:
    with pytest.raises(ValueError, match=message):
        operator(units, keep)
