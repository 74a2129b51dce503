"""Pairing and statistics of the time to first token, on clocks that tests control."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from affinity_pool.study.efficiency.ttft import Ttft, interleave, median_interval, rounds, timed, total


def test_runs_alternate_and_warm_up_does_not_count() -> None:
    calls: list[str] = []

    def contender(name: str, seconds: float) -> Callable[[], float]:
        def run() -> float:
            calls.append(name)
            return seconds + len(calls)

        return run

    times = interleave(contender("v", 100), contender("p", 200), runs=6, warm_up=1)
    assert "".join(calls) == "vppvvppvvppvvp"
    assert times == Ttft((104, 105, 108, 109, 112, 113), (203, 206, 207, 210, 211, 214))


def test_three_contenders_take_all_orders_in_turn() -> None:
    calls: list[str] = []

    def contender(name: str) -> Callable[[], float]:
        def run() -> float:
            calls.append(name)
            return float(len(calls))

        return run

    times = rounds({name: contender(name) for name in "abc"}, runs=6, warm_up=1)
    orders = ["".join(calls[at : at + 3]) for at in range(0, 21, 3)]
    assert orders == ["abc", "acb", "bac", "bca", "cab", "cba", "abc"]
    assert times["a"] == (4, 8, 12, 14, 18, 19)  # when it was called, without the first round
    assert {len(seconds) for seconds in times.values()} == {6}


def test_a_machine_that_slows_down_moves_no_ratio() -> None:
    slowing = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    times = Ttft(tuple(1.2 * s for s in slowing), tuple(slowing))
    assert times.ratio == pytest.approx(1.2)
    assert times.interval == pytest.approx((1.2, 1.2))


@pytest.mark.parametrize(
    ("unpooled", "verdict"),
    [(1.5, "pooling is 1.50x faster"), (0.5, "pooling is 2.00x SLOWER"), (1.0, "no difference that 7 pairs")],
)
def test_the_verdict_says_when_pooling_is_slower(unpooled: float, verdict: str) -> None:
    assert Ttft((unpooled,) * 7, (1.0,) * 7).verdict.startswith(verdict)


def test_the_total_pairs_runs_not_medians() -> None:
    both = total([Ttft((1, 2), (1, 1)), Ttft((3, 4), (1, 3))])
    assert both == Ttft((4, 6), (2, 4))


def test_the_interval_of_the_median_has_its_coverage() -> None:
    """n = 6: the range, 96.9 %; n = 10: second to ninth, 97.9 %; n = 20: sixth to fifteenth, 95.9 %."""
    assert median_interval(range(6)) == (0, 5)
    assert median_interval(range(10)) == (1, 8)
    assert median_interval(range(20)) == (5, 14)
    values = torch.randn(4000, 11, generator=torch.Generator().manual_seed(0)).tolist()
    covered = sum(low <= 0 <= high for low, high in map(median_interval, values))
    assert covered / 4000 > 0.95


@pytest.mark.parametrize("count", [0, 1, 5])
def test_too_few_runs_give_no_interval(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} values are too few"):
        median_interval(range(count))


def test_timed_runs_once() -> None:
    calls: list[int] = []
    assert timed(lambda: calls.append(1), torch.device("cpu")) > 0
    assert calls == [1]


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="runs must be 6 or more, got 5"):
        interleave(lambda: 0.0, lambda: 0.0, runs=5)
