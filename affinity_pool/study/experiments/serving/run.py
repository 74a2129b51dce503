"""Both ways of being served compared: first what is answered, then how fast, at each number of requests at once.

Both ways ask the same server, in turns, in the order unpooled, pooled, pooled, unpooled: whatever disturbs the machine
disturbs both. A ratio is taken within each round, and then its median over rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import openai

from ....provenance import provenance
from ...data import Audio, Utterance
from ...data.audio import joined
from ...efficiency.ttft import Ttft
from ...metrics.wer import word_errors
from ...runs.results import Compared, Facts, ServedClip, ServingResult, ServingSummary
from ...subject.lslm import can_spell
from .client import Client, Reply, Request, encoded, varied
from .load import Load, cache_blocks, check_pooled, serve, version

RATE = 16000
"""Samples a second of what is sent: of all models that the plug-in serves."""
BLOCK = 16
"""Tokens of a block of the KV cache where the server does not tell: vLLM's own default."""
WAYS = ("unpooled", "pooled")
STARTED = "started for this"
"""Of a server, in contrast to one that was up."""


@dataclass(frozen=True)
class Options:
    """What is measured."""

    keep: float
    """Share of the audio tokens, compared with all of them."""
    concurrency: tuple[int, ...]
    requests: int
    """Each way and round; as many as there are at once, if that is more."""
    rounds: int
    tokens: int
    """Of an answer: at most where it is looked at, exactly where it is timed."""
    seconds: float | None
    """Of the clips that are timed, made of the recordings; None: the recordings as they are."""
    dummy_weights: bool
    """Answers mean nothing."""

    @property
    def shares(self) -> dict[str, float]:
        return {"unpooled": 1.0, "pooled": self.keep}


@dataclass(frozen=True)
class Recording:
    """What is sent, and the right answer."""

    name: str
    audio: Audio
    prompt: str
    reference: str | None

    @classmethod
    def of(cls, utterance: Utterance, prompt: str | None) -> Recording:
        return cls(utterance.id, utterance.load(RATE), prompt or utterance.task, utterance.text)


@dataclass(frozen=True)
class Vocabulary:
    """The words that a model can say."""

    name: str
    tokenizer: Any

    @classmethod
    def of(cls, name: str, folder: str) -> Vocabulary:
        """Of the model in a folder."""
        from transformers import AutoTokenizer

        return cls(name, AutoTokenizer.from_pretrained(folder))

    def can_spell(self, text: str) -> bool:
        return can_spell(self.tokenizer, text)


async def run(
    url: str,
    recordings: Sequence[Recording],
    options: Options,
    about: Facts,
    notes: Sequence[str] = (),
    echo: Callable[[str], object] = print,
) -> ServingSummary:
    """Ask the server at ``url`` all there is to ask; returns what is written to ``summary.json``.

    Args:
        about: of the server, for the summary.
        echo: is told of each number of requests at once.

    Raises:
        InputError: the server refuses a request, breaks off, or does not pool.
    """
    client = await Client.of(url)
    blocks = cache_blocks(url)
    block_size = blocks[0] if blocks else BLOCK
    clips = [await _clip(client, one, options, block_size) for one in recordings]
    unpooled, pooled = (sum(clip["prompt_tokens"][way] for clip in clips) for way in (0, 1))
    check_pooled(unpooled, pooled, options.keep)
    timed = _timed(recordings, options.seconds)
    first = None if options.seconds is None else await _clip(client, timed[0], options, block_size)
    results = []
    for at_once in options.concurrency:
        results.append(await _compare(client, url, timed, options, at_once))
        echo(finding(results[-1]))
    origin = provenance()
    origin["versions"] |= {"vllm": version(url), "openai": openai.__version__}
    return {
        "command": "serving",
        "config": {"model": client.model, **about, **asdict(options), "concurrency": list(options.concurrency)},
        "provenance": origin,
        "notes": list(notes),
        "word_errors": None if options.dummy_weights else _word_errors(clips),
        "block_size": block_size,
        "blocks": blocks[1] if blocks else None,
        "clips": clips,
        "timed": first,
        "results": results,
    }


async def _clip(client: Client, one: Recording, options: Options, block_size: int) -> ServedClip:
    """A recording asked about both ways, alone."""
    recording = encoded(one.audio)
    replies: list[Reply] = [
        await client.ask(Request(recording, one.prompt, keep, options.tokens, exactly=options.dummy_weights))
        for keep in options.shares.values()
    ]
    unpooled, pooled = (None if options.dummy_weights else reply.text for reply in replies)
    prompts = [reply.prompt_tokens for reply in replies]
    return {
        "name": one.name,
        "seconds": round(one.audio.seconds, 3),
        "prompt": one.prompt,
        "reference": one.reference,
        "unpooled": unpooled,
        "pooled": pooled,
        "prompt_tokens": prompts,
        "kv_blocks": [math.ceil(tokens / block_size) for tokens in prompts],
    }


def _timed(recordings: Sequence[Recording], seconds: float | None) -> list[Recording]:
    """The recordings, or clips so long: each begins with another recording and goes on with those after it."""
    if seconds is None:
        return list(recordings)
    audio = [one.audio for one in recordings]
    return [
        Recording(f"{seconds:g} s from {one.name} on", joined([*audio[at:], *audio[:at]], seconds), one.prompt, None)
        for at, one in enumerate(recordings)
    ]


def _word_errors(clips: Sequence[ServedClip]) -> dict[str, dict[str, int]] | None:
    """Of both ways, over the recordings that have a reference; None if none has."""
    known = [clip for clip in clips if clip["reference"] is not None]
    if not known:
        return None
    references = [str(clip["reference"]) for clip in known]
    answers = {"unpooled": [str(clip["unpooled"]) for clip in known], "pooled": [str(clip["pooled"]) for clip in known]}
    return {way: asdict(word_errors(references, said)) for way, said in answers.items()}


async def _compare(
    client: Client, url: str, recordings: Sequence[Recording], options: Options, at_once: int
) -> ServingResult:
    """Rounds of both ways, after one that does not count."""
    number = max(options.requests, at_once)
    loads: dict[str, list[Load]] = {way: [] for way in WAYS}
    for turn in range(1 + options.rounds):
        sent = [(recordings[i % len(recordings)], turn * number + i) for i in range(number)]
        clips = [(encoded(varied(one.audio, seed)), one.prompt) for one, seed in sent]
        for way in WAYS if turn % 2 == 0 else reversed(WAYS):
            keep = options.shares[way]
            requests = [Request(clip, prompt, keep, options.tokens, exactly=True) for clip, prompt in clips]
            loads[way].append(await serve(client, url, requests, at_once))
    return compared({way: loads[way][1:] for way in WAYS}, at_once, number)


def compared(loads: Mapping[str, Sequence[Load]], at_once: int, requests: int) -> ServingResult:
    """Both ways' loads, entry ``i`` of both from round ``i``."""
    answers = {way: [median(reply.seconds for reply in load.replies) for load in loads[way]] for way in WAYS}
    of_request = {way: [load.seconds / len(load.replies) for load in loads[way]] for way in WAYS}
    of_token = {way: [load.seconds / load.output_tokens for load in loads[way]] for way in WAYS}
    return {
        "concurrency": at_once,
        "requests": requests,
        "first_token_seconds": _medians({way: [load.first_token for load in loads[way]] for way in WAYS}),
        "answer_seconds": _medians(answers),
        "requests_per_second": _medians(of_request, a_second=True),
        "output_tokens_per_second": _medians(of_token, a_second=True),
        "parts": _parts(loads),
        "rounds": {
            way: [
                {
                    "seconds": round(load.seconds, 6),
                    "first_token": round(load.first_token, 6),
                    "answer": round(answer, 6),
                    "output_tokens": load.output_tokens,
                }
                for load, answer in zip(loads[way], answers[way], strict=True)
            ]
            for way in WAYS
        },
    }


def _medians(seconds: Mapping[str, Sequence[float]], a_second: bool = False) -> Compared:
    pairs = Ttft(tuple(seconds["unpooled"]), tuple(seconds["pooled"]))
    low, high = pairs.interval
    unpooled, pooled = (1 / median(seconds[way]) if a_second else median(seconds[way]) for way in WAYS)
    return {
        "unpooled": round(unpooled, 6),
        "pooled": round(pooled, 6),
        "ratio": round(pairs.ratio, 4),
        "ratio_ci95": [round(low, 4), round(high, 4)],
        "verdict": pairs.verdict,
    }


def _parts(loads: Mapping[str, Sequence[Load]]) -> dict[str, dict[str, float]] | None:
    found: dict[str, dict[str, float]] = {}
    for way in WAYS:
        parts = [load.parts for load in loads[way] if load.parts is not None]
        if not parts:
            return None
        found[way] = {name: round(median(part[name] for part in parts), 6) for name in parts[0]}
    return found


def finding(result: ServingResult) -> str:
    """A number of requests at once in a sentence."""
    rate, first = result["requests_per_second"], result["first_token_seconds"]
    return (
        f"{result['concurrency']} at once: {rate['verdict']}; requests a second, pooled / unpooled {interval(rate)}; "
        f"time to first token, unpooled / pooled {interval(first)}"
        + (", **SLOWER**" if "SLOWER" in first["verdict"] else "")
    )


def interval(ratio: Compared) -> str:
    """A ratio with its 95 % interval."""
    low, high = ratio["ratio_ci95"]
    return f"{ratio['ratio']:.2f} [{low:.2f}, {high:.2f}]"
