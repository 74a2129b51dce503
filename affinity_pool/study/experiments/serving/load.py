"""Requests that keep a server busy, and what it tells of them at ``/metrics``."""

from __future__ import annotations

import asyncio
import re
import time
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from ...errors import InputError
from .client import Client, Reply, Request

PARTS = {
    "queue": "vllm:request_queue_time_seconds",
    "prefill": "vllm:request_prefill_time_seconds",
    "decoding": "vllm:request_decode_time_seconds",
}
"""Of a request's time in the engine, and what vLLM calls them; the encoder is part of the prefill."""
FRONT = "front end"
"""The rest: the way to the engine and back, the reading of the recording and its spectrogram."""

_SAMPLE = re.compile(r"^([\w:]+)(?:\{.*\})? (\S+)$", re.MULTILINE)
_BLOCKS = re.compile(r'^vllm:cache_config_info\{.*?\bblock_size="(\d+)".*?\bnum_gpu_blocks="(\d+)"', re.MULTILINE)


@dataclass(frozen=True)
class Load:
    """What a number of requests came to."""

    seconds: float
    """From the first that was sent to the last that was answered."""
    replies: tuple[Reply, ...]
    parts: Mapping[str, float] | None
    """Seconds of a request by part, in the mean; None where the server does not tell."""

    @property
    def first_token(self) -> float:
        """Seconds to the first token, the median."""
        return median(reply.first_token for reply in self.replies)

    @property
    def output_tokens(self) -> int:
        return sum(reply.output_tokens for reply in self.replies)


async def serve(client: Client, url: str, requests: Iterable[Request], at_once: int) -> Load:
    """All requests answered, ``at_once`` of them under way at any time: one is sent when another is done."""
    waiting = iter(requests)
    replies: list[Reply] = []

    async def one_after_the_other() -> None:
        for request in waiting:
            replies.append(await client.ask(request))

    before, start = metrics(url), time.perf_counter()
    await asyncio.gather(*(one_after_the_other() for _ in range(at_once)))
    seconds = time.perf_counter() - start
    return Load(seconds, tuple(replies), _parts(before, metrics(url), replies))


def _parts(before: Mapping[str, float], after: Mapping[str, float], replies: list[Reply]) -> dict[str, float] | None:
    found = {}
    for part, name in PARTS.items():
        requests = after.get(f"{name}_count", 0.0) - before.get(f"{name}_count", 0.0)
        if requests <= 0:
            return None
        found[part] = (after[f"{name}_sum"] - before.get(f"{name}_sum", 0.0)) / requests
    whole = sum(reply.seconds for reply in replies) / len(replies)
    return {FRONT: max(0.0, whole - sum(found.values())), **found}


def metrics(url: str) -> Mapping[str, float]:
    """Numbers of the server by name, summed over their labels; nothing where it does not tell."""
    found: dict[str, float] = {}
    for name, value in _SAMPLE.findall(_told(url)):
        found[name] = found.get(name, 0.0) + float(value)
    return found


def cache_blocks(url: str) -> tuple[int, int] | None:
    """Tokens of a block of the server's KV cache, and how many blocks there are; None where it does not tell."""
    told = _BLOCKS.search(_told(url))
    return None if told is None else (int(told[1]), int(told[2]))


def version(url: str) -> str | None:
    """Of vLLM; None where the server does not tell."""
    found = re.search(r'"version"\s*:\s*"([^"]+)"', _told(url, "version"))
    return None if found is None else found[1]


def _told(url: str, what: str = "metrics") -> str:
    try:
        with urllib.request.urlopen(f"{url}/{what}", timeout=60) as answer:
            text: str = answer.read().decode()
            return text
    except OSError:
        return ""


def check_pooled(unpooled: int, pooled: int, keep: float) -> None:
    """Whether the server has pooled, by the tokens of the same prompts.

    Raises:
        InputError: it has not.
    """
    if pooled >= unpooled:
        raise InputError(
            f"the server took {pooled} prompt tokens with keep={keep:g} and {unpooled} without: it does not pool. "
            "affinity_pool must be installed where vLLM is, and its log says why if it does not serve this model"
        )
