"""Which rows join: the paper's rule, its edges, and nothing but the rule."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from affinity_pool import reference

from .cases import DIMS, DTYPES, WINDOWS, Case, can_merge, cases, spell
from .implementations import Implementation
from .truth import assert_obeys_contract

pytestmark = pytest.mark.each_instruction_set


def angles(*degrees: float) -> torch.Tensor:
    """Unit rows in a plane: the cosine of two is the cosine of the difference of their angles."""
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=-1).float()


def grouped(implementation: Implementation, x: torch.Tensor, **options: object) -> list[int]:
    return implementation.pool(x, **options).counts.tolist()


@given(case=cases())
def test_every_decision_and_mean_obeys_the_contract(implementation: Implementation, case: Case):
    result = implementation.pool(case.x, case.cu_seqlens, **case.options)
    assert_obeys_contract(case.x, result, cu_seqlens=case.cu_seqlens, mergeable=case.mergeable, **case.rule)


@pytest.mark.parametrize(
    ("degrees", "window", "groups"),
    [
        ((0, 0, 0, 0), 1, [4]),  # all equal
        ((0, 90, 180, 270), 32, [1, 1, 1, 1]),  # all distinct
        ((0, 30, 60, 90), 1, [4]),  # a drift: each matches the one before it
        ((0, 30, 60, 0), 1, [3, 1]),  # 0 is far from 60 ...
        ((0, 30, 60, 0), 2, [4]),  # ... and near 30, two rows back
        ((0, 30, 60, 0, 60, 0, 60), 1, [3, 1, 1, 1, 1]),  # alternating A B A B: the window decides
        ((0, 30, 60, 0, 60, 0, 60), 2, [7]),
        ((0, 60, 0, 60), 32, [1, 1, 1, 1]),  # alternating from the start: A is not in the open group when it returns
        ((0, 0, 90, 0, 0), 32, [2, 1, 2]),  # the window ends where the open group begins
        ((0, 90, 90, 90, 0), 4, [1, 3, 1]),
        ((0, 30, 60, 90, 0), 2, [4, 1]),  # 30 is three rows back
        ((0, 30, 60, 90, 0), 3, [5]),
        ((0, 30, 60, 90, 90, 90, 90, 90, 30), 5, [8, 1]),  # far lags are another pass of the kernel: 60 is six back
        ((0, 30, 60, 90, 90, 90, 90, 90, 30), 6, [9]),
        ((0, 180, 0), 1, [1, 1, 1]),
        ((7,), 1, [1]),
    ],
)
def test_groups_worked_out_by_hand(implementation: Implementation, degrees, window, groups):
    threshold = math.cos(math.radians(35))
    assert grouped(implementation, angles(*degrees), threshold=threshold, window=window) == groups


small_integers = st.lists(st.lists(st.integers(-8, 8), min_size=2, max_size=2), min_size=2, max_size=12)


@given(rows=small_integers, window=st.sampled_from(WINDOWS), nudge=st.integers(-1, 1), dtype=st.sampled_from(DTYPES))
def test_ties_at_the_threshold_follow_the_stated_rule(implementation: Implementation, rows, window, nudge, dtype):
    """Integer rows have exact sums, so the rule leaves no room: thresholds on a cosine, and one float64 beside it."""
    (a, b), (c, d) = rows[0], rows[1]
    na, nb = a * a + b * b, c * c + d * d
    threshold = (a * c + b * d) / math.sqrt(na * nb) if na * nb else 0.5
    threshold = min(1.0, math.nextafter(threshold, nudge * math.inf) if nudge else threshold)

    def match(p: list[int], q: list[int]) -> bool:
        squares = [max(u * u + v * v, 1e-16) for u, v in (p, q)]
        return threshold <= -1 or p[0] * q[0] + p[1] * q[1] >= threshold * math.sqrt(squares[0] * squares[1])

    counts: list[int] = []
    for t, row in enumerate(rows):
        if counts and any(match(row, rows[s]) for s in range(t - min(window, counts[-1]), t)):
            counts[-1] += 1
        else:
            counts.append(1)
    assert grouped(implementation, torch.tensor(rows, dtype=dtype), threshold=threshold, window=window) == counts


def test_the_threshold_itself_is_enough(implementation: Implementation):
    x = torch.tensor([[3.0, 4.0], [4.0, 3.0]])  # cosine 24 / 25
    assert grouped(implementation, x, threshold=0.96) == [2]
    assert grouped(implementation, x, threshold=math.nextafter(0.96, 1)) == [1, 1]


@given(dim=st.sampled_from(DIMS), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 999), size=st.integers(2, 9))
def test_bit_identical_rows_match_at_threshold_one(implementation: Implementation, dim, dtype, seed, size):
    x = spell("A" * size, dim, dtype, seed=seed)
    assert grouped(implementation, x, threshold=1.0, window=1) == [size]


@pytest.mark.parametrize("dtype", DTYPES)
def test_threshold_one_separates_rows_that_differ(implementation: Implementation, dtype):
    x = spell("AB", 64, dtype)
    assert grouped(implementation, x, threshold=1.0) == [1, 1]


@given(case=cases(threshold=st.floats(1, math.inf, exclude_min=True)))
def test_threshold_above_one_is_the_identity(implementation: Implementation, case: Case):
    result = implementation.pool(case.x, case.cu_seqlens, **case.options)
    assert result.counts.tolist() == [1] * case.x.shape[0]
    assert torch.equal(result.cu_seqlens, case.cu_seqlens)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_beyond_one_is_no_match_above_one(implementation: Implementation, dtype):
    """Parallel rows, whose float32 cosine is above 1 as often as below."""
    x = spell("A" * 200, 33) * torch.linspace(0.1, 3, 200).unsqueeze(1)
    assert grouped(implementation, x.to(dtype), threshold=math.nextafter(1, 2)) == [1] * 200


@given(case=cases(threshold=st.floats(-math.inf, -1), alphabet="AABBC0"))
def test_threshold_minus_one_merges_everything_finite(implementation: Implementation, case: Case):
    result = implementation.pool(case.x, case.cu_seqlens, **case.options)
    assert result.counts.tolist() == [n for n in case.lengths.tolist() if n > 0]


def test_opposite_rows_match_at_minus_one_whatever_rounding_says(implementation: Implementation):
    x = spell("A" * 64, 129).abs()
    x[1::2] *= -torch.linspace(0.1, 3, 32).unsqueeze(1)
    assert grouped(implementation, x, threshold=-1.0, window=1) == [64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threshold", [1e-6, 0.5, 0.8, 1.0])
def test_zero_rows_match_nothing_at_positive_thresholds(implementation: Implementation, dtype, threshold):
    assert grouped(implementation, spell("A00AA0", 33, dtype), threshold=threshold) == [1, 1, 1, 2, 1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_rows_match_everything_from_zero_down(implementation: Implementation, dtype):
    for threshold in (0.0, -0.25):
        assert grouped(implementation, spell("A00AA0", 33, dtype), threshold=threshold) == [6]


def test_norms_are_floored_at_1e_8(implementation: Implementation):
    """As in torch.nn.functional.cosine_similarity: two equal rows of norm 1e-9 have similarity 0.01."""
    x = torch.tensor([[1e-9, 0.0], [1e-9, 0.0]])
    assert grouped(implementation, x, threshold=0.0101) == [1, 1]
    assert grouped(implementation, x, threshold=0.0099) == [2]
    assert grouped(implementation, x * 20, threshold=1.0) == [2]
    one_small = torch.tensor([[1e-9, 0.0], [2.0, 0.0]])
    assert grouped(implementation, one_small, threshold=0.101) == [1, 1]
    assert grouped(implementation, one_small, threshold=0.099) == [2]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("odd", "?^!")
@pytest.mark.parametrize("threshold", [-2.0, -0.5, 0.0, 0.8])
@pytest.mark.parametrize("window", [1, 3, 8])
def test_a_row_that_is_not_finite_matches_nothing_and_harms_no_one(
    implementation: Implementation, dtype, odd, threshold, window
):
    text = f"AA{odd}AAA{odd}{odd}AAAA"
    x = spell(text, 65, dtype)
    result = implementation.pool(x, threshold=threshold, window=window)
    assert result.counts.tolist() == [2, 1, 3, 1, 1, 4]
    assert torch.equal(result.values[[0, 2, 5]].isfinite(), torch.ones(3, 65, dtype=torch.bool))


def test_a_squared_norm_beyond_float32_matches_nothing(implementation: Implementation):
    for dtype in (torch.float32, torch.bfloat16):
        large = torch.full((3, 4), 1e18, dtype=dtype)  # squares sum to 4e36
        assert grouped(implementation, large, threshold=0.8) == [3]
        assert grouped(implementation, large * 100, threshold=0.8) == [1, 1, 1]
    assert grouped(implementation, torch.full((3, 64), 65504.0, dtype=torch.float16), threshold=0.8) == [3]


@given(case=cases(masked=True))
def test_a_group_never_crosses_text(implementation: Implementation, case: Case):
    result = implementation.pool(case.x, case.cu_seqlens, **case.options)
    text = ~can_merge("".join(case.sequences))
    assert (result.counts[result.segment_ids.long()][text] == 1).all()


@pytest.mark.parametrize("window", WINDOWS)
def test_equal_rows_on_both_sides_of_text_stay_apart(implementation: Implementation, window):
    text = "AAaAAAaaA"
    result = implementation.pool(spell(text, 16), mergeable=can_merge(text), threshold=-1.0, window=window)
    assert result.counts.tolist() == [2, 1, 3, 1, 1, 1]


@pytest.mark.parametrize("window", WINDOWS)
def test_the_window_reaches_exactly_so_far(implementation: Implementation, window):
    """A, then F's that match A and one another but not B, then B, which matches A alone."""
    for between in range(window + 2):
        x = angles(0, *[-32] * between, 30)
        expected = [between + 2] if between < window else [between + 1, 1]
        assert grouped(implementation, x, threshold=math.cos(math.radians(35)), window=window) == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_wide_rows_agree_with_float64_but_for_rounding(implementation: Implementation, dtype):
    """Rows of 4096 whose cosines crowd around the threshold: the judge allows 4e-6."""
    generator = torch.Generator().manual_seed(0)
    base, other = torch.randn(2, 4096, generator=generator, dtype=torch.float64)
    base, other = torch.linalg.qr(torch.stack([base, other], 1))[0].t()
    tilt = math.acos(0.8) + torch.linspace(-1, 1, 80, dtype=torch.float64).unsqueeze(1) ** 3 * 0.01
    pairs = torch.stack([base.expand(80, -1), tilt.cos() * base + tilt.sin() * other], 1).flatten(0, 1).to(dtype)
    cu_seqlens = torch.arange(0, 161, 2, dtype=torch.int32)
    result = implementation.pool(pairs, cu_seqlens, threshold=0.8, window=1)
    assert 20 < (result.counts == 2).sum() < 60
    assert_obeys_contract(pairs, result, cu_seqlens=cu_seqlens, threshold=0.8, window=1)


def test_the_reference_is_the_judge_of_no_rounding():
    """`match`, the formula of the contract, on sums that are exact."""
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])
    assert reference.match(a, b, 0.96)
    assert not reference.match(a, b, math.nextafter(0.96, 1))
    assert not reference.match(a, a * math.nan, -2.0)
    assert not reference.match(a, a * 1e30, 0.5)
    assert not reference.match(a * 0, a * 0, 0.1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("window", "dim"), [(9, 2), (12, 2), (17, 2), (32, 2), (32, 1032)])
def test_every_row_finds_a_match_at_every_lag(implementation: Implementation, dtype, window: int, dim: int):
    """``lag`` rows back and nowhere else, behind 0 to 7 rows of text: wherever in eight rows taken together."""
    lags = range(1, window + 2) if dim == 2 else (window - 7, window - 1, window, window + 1)
    sequences, masks, expected = [], [], []
    for lag in lags:
        for text in range(8):
            plane = angles(*[0.0] * (text + 1), *[-32.0] * (lag - 1), 30.0)
            rows = torch.zeros(len(plane), dim)
            rows[:, 0], rows[:, -1] = plane[:, 0], plane[:, 1]
            sequences.append(rows)
            masks.append(torch.arange(len(rows)) >= text)
            expected += [1] * text + ([lag + 1] if lag <= window else [lag, 1])
    cu_seqlens = torch.tensor([0, *(len(rows) for rows in sequences)]).cumsum(0).int()
    x, rule = torch.cat(sequences).to(dtype), {"threshold": math.cos(math.radians(35)), "window": window}
    assert grouped(implementation, x, cu_seqlens=cu_seqlens, mergeable=torch.cat(masks), **rule) == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [160, 257, 296, 1032, 1304, 2200])
@pytest.mark.parametrize("lag", [1, 12, 20])
def test_every_feature_counts_once(implementation: Implementation, dtype, dim: int, lag: int):
    """The cosine of e0 + ej and ej is the root of 1/2: if a feature counted twice, or not at all, it would not be."""
    features = [*range(1, dim, 7 if lag == 1 else 29)]
    features += range(max(features[-1], dim - 40) + 1, dim, 3)
    sequences = []
    for j in features:
        first, other = torch.zeros(2, dim)
        first[0] = other[j] = 1
        sequences.append(torch.stack([first + other, *[first + other / 2] * (lag - 1), other]))
    x = torch.cat(sequences).to(dtype)
    cu_seqlens = torch.arange(0, len(x) + 1, lag + 1, dtype=torch.int32)
    for threshold, groups in ((0.70, [lag + 1]), (0.715, [lag, 1])):
        found = grouped(implementation, x, cu_seqlens=cu_seqlens, threshold=threshold, window=lag)
        assert found == groups * len(features)
        if lag == 1:  # so that pairs begin at all places, and before the tile
            assert grouped(implementation, x, threshold=threshold, window=1) == groups * len(features)
