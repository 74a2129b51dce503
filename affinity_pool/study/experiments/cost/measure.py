"""One case measured: prefills and decoding of the same prompts without and with pooling, in turns.

Every figure is of one prompt, the mean over a case's prompts; times and their ratios are taken round by round over all
of them (see :mod:`affinity_pool.study.efficiency.ttft`). Prefills are timed as they are; where their time goes, and
what memory they take, is found in passes of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import quantiles
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from ....benchmarks.timing import FEWEST
from ....models import PrefillStats
from ....models.settings import Pooling
from ...efficiency.ttft import Ttft, rounds, timed, wait
from ...runs.results import CostResult, FlopsResult, Percentiles, Ratio
from ...subject.subject import Subject
from .memory import peak_bytes
from .parts import timed_parts
from .prompts import Case, Prompt, batch_of
from .prompts import idle as as_idle

Times = Mapping[str, Sequence[float]]
"""Seconds by condition, entry ``i`` of all from round ``i``."""

PASSES = 5  # in which parts are timed; the one whose whole is the median is kept, so that parts add up


@dataclass(frozen=True)
class Options:
    """How much is measured."""

    rounds: int = 21
    """Of prefills. Decoding gets the fewest that give an interval: a round of it is many steps long."""
    new_tokens: int = 32
    """Decoding steps after the first token."""
    idle: bool = False
    """Whether there is a third condition: pooling by rules that merge nothing."""


def measure(subject: Subject, case: Case, options: Options) -> CostResult:
    """A line of the results."""
    prompts = case.prompts()
    stats = [_checked(subject, prompt) for prompt in prompts]
    first, steps, parts, memory = [], [], [], []
    for prompt in prompts:
        ways = _ways(prompt, options.idle)
        first.append(rounds(_clocks(subject, prompt, ways, first_token_seconds), options.rounds))
        decode = partial(decode_seconds, new_tokens=options.new_tokens)
        with subject.encoded_once():  # what is before the first token does not count
            steps.append(rounds(_clocks(subject, prompt, ways, decode), FEWEST, warm_up=1))
        parts.append({way: _parts(subject, prompt, pooling) for way, pooling in ways.items() if way != "idle"})
        memory.append([_memory(subject, prompt, ways[way]) for way in ("unpooled", "pooled")])
    n = len(prompts)
    prefills, decoding = _together(first), _together(steps)
    each = {way: [seconds / n for seconds in prefills[way]] for way in prefills}
    new = case.batch * options.new_tokens
    where = {way: _mean_parts([part[way] for part in parts]) for way in parts[0]}
    tokens = [_tokens(found) for found in stats]
    audio = [[sum(rows) for rows in _audio_tokens(found)] for found in stats]
    of_sites = [sum(site) for site in zip(*audio, strict=True)]
    result: CostResult = {
        "name": case.name,
        "seconds": round(sum(prompt.seconds for prompt in prompts) / n, 2),
        "batch": case.batch,
        "prompts": n,
        "tokens": [round(sum(stage) / n / case.batch) for stage in zip(*tokens, strict=True)],
        "audio_retention": [round(left / of_sites[0], 4) for left in of_sites[1:]],
        "unpooled_seconds": percentiles(each["unpooled"]),
        "pooled_seconds": percentiles(each["pooled"]),
        **_compared(prefills, "pooled"),
        "idle": _compared(prefills, "idle") if options.idle else None,
        "parts": where,
        "pooling_seconds": round(sum(s for part, s in where["pooled"].items() if part.startswith("pooling")), 7),
        "decode": {
            "new_tokens": options.new_tokens,
            "tokens_per_second": {
                way: round(new * n / percentiles(seconds)["p50"], 2) for way, seconds in decoding.items()
            },
            **_compared(decoding, "pooled"),
        },
        "kv_bytes": [
            sum(found.kv_bytes + found.kv_bytes_saved for found in stats) // n,
            sum(found.kv_bytes for found in stats) // n,
        ],
        "dynamic_bytes": None if None in memory[0] else [sum(sizes) // n for sizes in zip(*memory, strict=True)],
        "flops": _flops(subject, prompts, stats),
        "rounds": {"prefill": _rounded(prefills), "decode": _rounded(decoding)},
    }
    if options.idle:
        result["idle_seconds"] = percentiles(each["idle"])
    return result


@contextmanager
def patched(subject: Subject, pooling: Pooling | None) -> Iterator[Any]:
    """The model as a condition has it: patched, or as it is."""
    if pooling is None:
        yield None
    else:
        with subject.patched(pooling) as handle:
            yield handle


def generate(subject: Subject, prompt: Prompt, tokens: int, *criteria: StoppingCriteria) -> Tensor:
    """``[B, tokens]`` greedy ids: an end token does not end it, so that the work is the same in each condition."""
    return subject.generate(prompt.inputs, tokens, exactly=True, stopping_criteria=StoppingCriteriaList(criteria))


def first_token(subject: Subject, prompt: Prompt) -> list[int]:
    """Prefill, and the first token of each row on the host."""
    ids: list[int] = generate(subject, prompt, 1)[:, 0].tolist()
    return ids


def first_token_seconds(subject: Subject, prompt: Prompt) -> float:
    """From features on the device to the first token on the host, the device idle before and after."""
    return timed(partial(first_token, subject, prompt), subject.device)


class _FirstToken(StoppingCriteria):
    """Stops nothing; looks at the clock when the first token is there."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.at: float | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        if self.at is None:
            wait(self.device)
            self.at = time.perf_counter()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def decode_seconds(subject: Subject, prompt: Prompt, new_tokens: int) -> float:
    """Of ``new_tokens`` decoding steps, from the first token on; the prefill before them does not count."""
    first = _FirstToken(subject.device)
    generate(subject, prompt, 1 + new_tokens, first)
    wait(subject.device)
    assert first.at is not None
    return time.perf_counter() - first.at


def percentiles(seconds: Sequence[float]) -> Percentiles:
    """Of rounds: the 20th, the median and the 80th."""
    tenths = quantiles(seconds, n=10, method="inclusive")
    return {"p20": round(tenths[1], 6), "p50": round(tenths[4], 6), "p80": round(tenths[7], 6)}


def _ways(prompt: Prompt, idle: bool) -> dict[str, Pooling | None]:
    """The conditions."""
    ways = {"unpooled": None, "pooled": prompt.pooling}
    return {**ways, "idle": as_idle(prompt.pooling)} if idle else ways


def _clocks(
    subject: Subject, prompt: Prompt, ways: Mapping[str, Pooling | None], clock: Callable[[Any, Prompt], float]
) -> dict[str, Callable[[], float]]:
    """The clock in each condition; patching is outside of it, as a server patches once."""

    def of(pooling: Pooling | None) -> float:
        with patched(subject, pooling):
            return clock(subject, prompt)

    return {way: partial(of, pooling) for way, pooling in ways.items()}


def _checked(subject: Subject, prompt: Prompt) -> PrefillStats:
    """What pooling does to a prompt."""
    with patched(subject, prompt.pooling) as handle:
        first_token(subject, prompt)
        stats: PrefillStats = handle.stats
    prompt.check(stats)
    return stats


def _memory(subject: Subject, prompt: Prompt, pooling: Pooling | None) -> int | None:
    with patched(subject, pooling):
        return peak_bytes(partial(first_token, subject, prompt), subject.device)


def _parts(subject: Subject, prompt: Prompt, pooling: Pooling | None) -> dict[str, float]:
    run, sites = partial(first_token, subject, prompt), [site.layer for site in prompt.pooling.sites]
    with patched(subject, pooling):
        found = [timed_parts(subject, run, sites, pooling is not None) for _ in range(PASSES)]
    return sorted(found, key=lambda parts: sum(parts.values()))[PASSES // 2]


def _mean_parts(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {part: round(sum(parts[part] for parts in found) / len(found), 7) for part in found[0]}


def _together(parts: Sequence[Times]) -> dict[str, list[float]]:
    """Round by round the sum over prompts."""
    return {way: [sum(run) for run in zip(*(part[way] for part in parts), strict=True)] for way in parts[0]}


def _compared(times: Times, way: str) -> Ratio:
    """Unpooled over another condition, within rounds."""
    pairs = Ttft(tuple(times["unpooled"]), tuple(times[way]))
    low, high = pairs.interval
    return {"ratio": round(pairs.ratio, 4), "ratio_ci95": [round(low, 4), round(high, 4)], "verdict": pairs.verdict}


def _rounded(times: Times) -> dict[str, list[float]]:
    return {way: [round(seconds, 7) for seconds in times[way]] for way in times}


def _tokens(stats: PrefillStats) -> list[int]:
    """Of all rows, text included where it is pooled among: as they come, then after each site."""
    return [sum(stats.sites[0].tokens_before), *(sum(site.tokens_after) for site in stats.sites)]


def _audio_tokens(stats: PrefillStats) -> list[list[int]]:
    return [stats.sites[0].audio_before, *(site.audio_after for site in stats.sites)]


def _flops(subject: Subject, prompts: Sequence[Prompt], stats: Sequence[PrefillStats]) -> FlopsResult | None:
    """Operations of a prefill, padding included; None where the decoder's cannot be counted, as with experts.

    ``encoder`` is None where that cannot be counted.
    """
    decoder, encoder = {"unpooled": 0.0, "pooled": 0.0}, 0.0
    known = True
    for prompt, found in zip(prompts, stats, strict=True):
        text, audio = subject.columns(prompt.inputs)
        after = {site.layer: max(site.tokens_after) for site in found.sites}
        try:
            ways = {"unpooled": subject.prefill_flops(text, audio), "pooled": subject.prefill_flops(text, audio, after)}
        except ValueError:
            return None
        for way, one in ways.items():
            decoder[way] += batch_of(prompt) * one.decoder / len(prompts)
        of_encoder = subject.encoder_flops(prompt.inputs)
        known = known and of_encoder is not None
        encoder += (of_encoder or 0.0) / len(prompts)
    ratio = round(decoder["pooled"] / decoder["unpooled"], 4)
    return {"encoder": encoder if known else None, "decoder": decoder, "ratio": ratio}
