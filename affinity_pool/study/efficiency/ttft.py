"""Time to first token: from features on the device to the first generated token on the host.

It covers the encoder, the decoder's prefill and the choice of the first token, and not the reading of audio or the
features. Unpooled and pooled runs alternate, and the order within a pair alternates too, so that a machine that slows
down or is shared hits both alike; what counts is the ratio within each pair, not a quotient of two averages.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, permutations
from statistics import median

import torch

from ...benchmarks.timing import FEWEST, median_interval


@dataclass(frozen=True)
class Ttft:
    """Paired runs; entry ``i`` of both lists ran back to back. Seconds."""

    unpooled: tuple[float, ...]
    pooled: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """Unpooled over pooled, pair by pair: above 1 pooling is faster."""
        return [v / p for v, p in zip(self.unpooled, self.pooled, strict=True)]

    @property
    def ratio(self) -> float:
        return median(self.ratios)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the ratio; see :func:`affinity_pool.benchmarks.timing.median_interval`."""
        return median_interval(self.ratios)

    @property
    def verdict(self) -> str:
        """What the interval allows to say."""
        low, high = self.interval
        if low > 1:
            return f"pooling is {self.ratio:.2f}x faster"
        if high < 1:
            return f"pooling is {1 / self.ratio:.2f}x SLOWER"
        return f"no difference that {len(self.unpooled)} pairs of runs could show"


def total(parts: Sequence[Ttft]) -> Ttft:
    """Run ``i`` of every part taken together as one pair."""
    return Ttft(
        tuple(map(sum, zip(*(part.unpooled for part in parts), strict=True))),
        tuple(map(sum, zip(*(part.pooled for part in parts), strict=True))),
    )


def interleave(unpooled: Callable[[], float], pooled: Callable[[], float], runs: int, warm_up: int = 2) -> Ttft:
    """:func:`rounds` of two."""
    return Ttft(**rounds({"unpooled": unpooled, "pooled": pooled}, runs, warm_up))


def rounds(contenders: Mapping[str, Callable[[], float]], runs: int, warm_up: int = 2) -> dict[str, tuple[float, ...]]:
    """Call each contender once a round, ``runs`` times, after ``warm_up`` rounds that do not count.

    Rounds go through all orders in turn. Each callable runs once and returns its seconds, so that what it does before
    and after its clock is its own affair.
    """
    if runs < FEWEST:
        raise ValueError(f"runs must be {FEWEST} or more, got {runs}: fewer give no 95 % interval of their median")
    orders = cycle(permutations(contenders))
    found = [{name: contenders[name]() for name in next(orders)} for _ in range(warm_up + runs)]
    return {name: tuple(seconds[name] for seconds in found[warm_up:]) for name in contenders}


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, with the device idle before it and done after it."""
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
