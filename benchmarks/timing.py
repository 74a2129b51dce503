"""Time calls against each other on a machine that is never quiet.

Calls take turns in rounds, in random order, so that whatever disturbs one disturbs the others. A ratio is taken within
each round and then its median over rounds; percentiles 20, 50 and 80 tell what the noise was.

On CUDA the device's events bracket many calls in a row. An eager call of a few microseconds then costs what the host
takes to launch it; replayed from a graph (see :func:`captured`) it costs what the kernel takes. A call that waits for
the device itself is timed by the host's clock, alone.
"""

from __future__ import annotations

import ctypes
import math
import random
import resource
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any, TypeVar

import torch
from torch import Tensor

MIN_SAMPLE = 200e-6  # seconds of calls under one reading of the clock
MIN_CUDA_SAMPLE = 2e-3  # the first launch into an idle device takes 10 us or so: half a percent of this
SPIN_UP = 0.1  # seconds of calls before anything counts: an idle GPU raises its clocks when work comes
FEWEST = 6  # rounds of a slow call; the least that has a 95 % interval of a median

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Call:
    """One thing to time: what it does to an input, whether autograd watches, and by which clock."""

    function: Callable[[Tensor], Any]
    grad: bool = False
    calls: int = 1
    """How many calls one execution of ``function`` makes: a graph holds many."""
    waits: bool = False
    """It waits for the device: on CUDA, too, it is timed by the host's clock, from an idle device to an idle device."""


@dataclass
class Samples:
    """Seconds a call took, by the round it took part in."""

    calls_per_sample: int
    seconds: dict[int, float] = field(default_factory=dict)
    page_faults: int = 0

    def per_call(self) -> dict[str, float]:
        """Percentiles of a call in microseconds."""
        return {name: round(1e6 * p, 3) for name, p in percentiles(list(self.seconds.values())).items()}

    def page_faults_per_call(self) -> float:
        return round(self.page_faults / (len(self.seconds) * self.calls_per_sample), 2)

    def against(self, other: Samples) -> dict[str, float | list[float] | None]:
        """Percentiles of the ratio to another call in the same round, and the 95 % interval of its median."""
        ratios = [s / other.seconds[i] for i, s in self.seconds.items() if i in other.seconds]
        result: dict[str, float | list[float] | None] = {name: round(p, 4) for name, p in percentiles(ratios).items()}
        result["ci95"] = [round(x, 4) for x in median_interval(ratios)] if len(ratios) >= FEWEST else None
        return result


def interleave(
    calls: dict[Key, Call], inputs: list[Tensor], *, rounds: int, seconds: float, seed: int = 0
) -> dict[Key, Samples]:
    """Time ``calls`` in turns.

    With one input every call finds it where the call before left it (each sample follows an untimed call of its own);
    with many, inputs go round, and no call sees one before all others have been through the caches. A call that would
    need more than about ``seconds`` for all ``rounds`` takes part in fewer, evenly spread.
    """
    rng = random.Random(seed)
    cuda = inputs[0].device.type == "cuda"
    clocks = {name: Clock(cuda, events=cuda and not call.waits) for name, call in calls.items()}
    source = cycle(inputs)
    samples: dict[Key, Samples] = {}
    every: dict[Key, int] = {}
    if cuda:
        _spin_up(calls, source, clocks)
    for name, call in calls.items():
        trial = max(1, 10 // call.calls) if clocks[name].events else 1  # one eager call alone is mostly launch
        estimate = min(_sample(call, source, clocks[name], trial) for _ in range(3)) * call.calls
        repeats = 1
        if clocks[name].events:
            repeats = math.ceil(MIN_CUDA_SAMPLE / estimate)
        elif len(inputs) == 1 and not cuda:
            repeats = math.ceil(MIN_SAMPLE / estimate)
        samples[name] = Samples(repeats * call.calls)
        spread = math.ceil(rounds * estimate * repeats / seconds)
        every[name] = max(1, min(spread, rounds // FEWEST))
    for i in range(rounds):
        turn = [name for name in calls if i % every[name] == 0]
        rng.shuffle(turn)
        for name in turn:
            taken, call = samples[name], calls[name]
            if len(inputs) == 1 and every[name] == 1:
                _sample(call, source, clocks[name], 1)
            faults = page_faults()
            taken.seconds[i] = _sample(call, source, clocks[name], taken.calls_per_sample // call.calls)
            taken.page_faults += page_faults() - faults
    return samples


class Clock:
    """Seconds between two readings, of the device's events or of the host's clock; a GPU is idle at both."""

    def __init__(self, cuda: bool, events: bool) -> None:
        self.events = events
        self._wait: Callable[[], object] = torch.cuda.synchronize if cuda else lambda: None

    @contextmanager
    def stop(self, into: list[float]) -> Iterator[None]:
        self._wait()
        if self.events:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._wait()
            into.append(start.elapsed_time(end) / 1e3)
        else:
            begin = time.perf_counter()
            yield
            self._wait()
            into.append(time.perf_counter() - begin)


def captured(function: Callable[[Tensor], Any], inputs: list[Tensor], calls: int) -> tuple[Call, Any]:
    """A CUDA graph of ``calls`` calls over ``inputs`` in turn, and what the last of them returns at each replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph, result = torch.cuda.CUDAGraph(), None
    with torch.inference_mode():
        with torch.cuda.stream(stream):  # once outside the graph: compiles, and allocates what outlives a call
            function(inputs[0])
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            for x in islice(cycle(inputs), calls):
                result = None  # freed before the next call, which gets its memory, as eager calls do
                result = function(x)
    return Call(lambda _: graph.replay(), calls=calls), result


def _spin_up(calls: dict[Key, Call], source: Iterator[Tensor], clocks: dict[Key, Clock]) -> None:
    until = time.perf_counter() + SPIN_UP
    while time.perf_counter() < until:
        for name, call in calls.items():
            _sample(call, source, clocks[name], 1)


def _sample(call: Call, source: Iterator[Tensor], clock: Clock, repeats: int) -> float:
    """Seconds a call takes; what it returns is freed at once."""
    function = call.function
    taken: list[float] = []
    with torch.inference_mode(not call.grad), clock.stop(taken):
        for _ in range(repeats):
            function(next(source))
    return taken[0] / (repeats * call.calls)


def percentiles(values: list[float]) -> dict[str, float]:
    p20, p50, p80 = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8]).double()).tolist()
    return {"p20": p20, "p50": p50, "p80": p80}


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the median from order statistics: no assumption on the distribution, no random numbers.

    The true median lies between the k-th smallest and k-th largest of n values with probability
    ``1 - 2 P(Binomial(n, 1/2) < k)``, and the largest k that keeps to ``confidence`` is taken. Fewer than 6 values
    cannot reach 95 %: refused.
    """
    ordered = sorted(values)
    n, k, missed = len(ordered), 0, 0.0
    while k < n // 2:
        missed += 2 * math.comb(n, k) / 2**n
        if missed > 1 - confidence:
            break
        k += 1
    if k == 0:
        raise ValueError(f"{n} values are too few for a {confidence:.0%} interval of their median")
    return ordered[k - 1], ordered[n - k]


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def keep_freed_memory() -> bool:
    """Have malloc hand freed memory out again instead of returning it to the kernel; whether that could be arranged.

    Otherwise a large output costs a page fault per 4 KiB in some runs and none in others, as the heap happens to be:
    several times what copying costs, and the copy would look slower than it is.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    m_trim_threshold, m_mmap_max = -1, -4  # of glibc's malloc.h
    return bool(mallopt(m_mmap_max, 0)) and bool(mallopt(m_trim_threshold, 2**31 - 1))
