"""Served with and without pooling, against a server that only looks like vLLM's; nothing depends on a clock."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import numpy as np
import pytest
import soundfile
from fake_vllm import FakeVllm, recording

from affinity_pool.study.data import Audio
from affinity_pool.study.data.audio import joined
from affinity_pool.study.errors import InputError
from affinity_pool.study.experiments.serving import load, server
from affinity_pool.study.experiments.serving.client import Client, Reply, Request, encoded, varied
from affinity_pool.study.experiments.serving.load import Load, serve
from affinity_pool.study.experiments.serving.page import page
from affinity_pool.study.experiments.serving.run import WAYS, Options, Recording, compared, run
from affinity_pool.study.report.page import html
from affinity_pool.study.runs.results import ServingSummary

BRIEF = Options(keep=0.5, concurrency=(1, 3), requests=2, rounds=6, tokens=4, seconds=None, dummy_weights=False)


def sound(seconds: float = 1.0, seed: int = 0) -> Audio:
    noise = np.random.default_rng(seed).uniform(-0.3, 0.3, round(16000 * seconds))
    return Audio(noise.astype(np.float32), 16000)


def request(keep: float = 1.0, **more: Any) -> Request:
    return Request(encoded(sound()), "transcribe", keep, tokens=4, **more)


def ask(fake: FakeVllm, asked: Request) -> Reply:
    async def one() -> Reply:
        return await (await Client.of(fake.url)).ask(asked)

    return asyncio.run(one())


RECORDINGS = [
    Recording("first", sound(1.0, 1), "transcribe", "five nine two"),
    Recording("second", sound(2.0, 2), "transcribe", None),
]


def measured(fake: FakeVllm, options: Options = BRIEF) -> ServingSummary:
    about = {"model": "fake", "server": "one that was up", "dtype": "auto"}
    return asyncio.run(run(fake.url, RECORDINGS, options, about, ["a note"], lambda _: None))


# Requests.


def test_a_request_says_what_it_keeps_and_is_answered(fake: FakeVllm) -> None:
    reply = ask(fake, request(0.5))
    assert (reply.text, reply.output_tokens, reply.prompt_tokens) == ("five nine", 2, 20 + round(25 * 0.5))
    assert 0 < reply.first_token <= reply.seconds
    (seen,) = fake.seen
    assert seen["mm_processor_kwargs"] == {"affinity_pool": {"keep": 0.5}}
    assert (seen["model"], seen["temperature"], seen["max_tokens"]) == ("fake", 0, 4)
    assert "ignore_eos" not in seen


def test_a_timed_request_has_an_answer_of_known_length(fake: FakeVllm) -> None:
    assert ask(fake, request(exactly=True)).output_tokens == 4
    assert fake.seen[0]["ignore_eos"] is True


@pytest.mark.parametrize("at_once", [1, 3])
def test_as_many_requests_are_under_way_as_asked_for(fake: FakeVllm, at_once: int) -> None:
    async def served() -> Load:
        return await serve(await Client.of(fake.url), fake.url, [request()] * 7, at_once)

    found = asyncio.run(served())
    assert len(found.replies) == len(fake.seen) == 7
    assert fake.most_at_once <= at_once
    assert found.output_tokens == 21


def test_refusals_of_the_server_are_told(fake: FakeVllm) -> None:
    with pytest.raises(InputError, match=r"keep=0.01: .*keep must be in 0.1..1 on this server"):
        ask(fake, request(0.01))


def test_an_answer_that_breaks_off_is_an_error(fake: FakeVllm) -> None:
    fake.breaks_off = True
    with pytest.raises(InputError, match=r"did not answer a request|does not say how many tokens"):
        ask(fake, request())


def test_where_nobody_serves_it_is_said() -> None:
    with pytest.raises(InputError, match=r"no model is served at http://127"):
        asyncio.run(Client.of(f"http://127.0.0.1:{server.free_port()}"))


def test_noise_is_in_the_lowest_bit_and_known_by_its_seed() -> None:
    before, after = sound(), varied(sound(), 7)
    assert np.abs(after.samples - before.samples).max() <= 1.001 / 2**15
    assert encoded(after) == encoded(varied(sound(), 7)) != encoded(varied(sound(), 8))


def test_recordings_are_joined_to_a_length() -> None:
    clips = [sound(1.0, 1), sound(0.5, 2)]
    assert np.array_equal(joined(clips, 0.25).samples, clips[0].samples[:4000])
    long = joined(clips, 2.0)
    assert long.seconds == 2
    assert np.array_equal(long.samples[24000:], clips[0].samples[:8000])


# What a server tells.


def test_what_the_server_tells_of_itself(fake: FakeVllm) -> None:
    assert load.cache_blocks(fake.url) == (32, 512)
    assert load.version(fake.url) == "0.0.1"
    ask(fake, request())
    assert load.metrics(fake.url)["vllm:request_prefill_time_seconds_sum"] == pytest.approx(0.002)


def test_a_server_that_tells_nothing_is_measured_all_the_same(fake: FakeVllm) -> None:
    fake.tells = False
    summary = measured(fake)
    assert (summary["block_size"], summary["blocks"]) == (16, None)
    assert summary["provenance"]["versions"]["vllm"] is None
    assert summary["results"][0]["parts"] is None
    assert "Where a request's time goes" not in html(page(summary))


def test_a_server_that_does_not_pool_is_found_out(fake: FakeVllm) -> None:
    fake.pools = False
    with pytest.raises(InputError, match=r"took 115 prompt tokens with keep=0.5 and 115 without: it does not pool"):
        measured(fake)


# The comparison.


def test_both_ways_get_the_same_recordings_in_turns(fake: FakeVllm) -> None:
    summary = measured(fake)
    asked = fake.seen[2 * len(RECORDINGS) :]
    alone, together = asked[: 2 * 2 * 7], asked[2 * 2 * 7 :]
    assert len(together) == 3 * 2 * 7  # as many as at once are the fewest
    keeps = [one["mm_processor_kwargs"]["affinity_pool"]["keep"] for one in alone]
    assert keeps == [1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 1.0, 1.0] * 3 + [1.0, 1.0, 0.5, 0.5]
    ways = {
        keep: [recording(one) for one in alone if one["mm_processor_kwargs"]["affinity_pool"]["keep"] == keep]
        for keep in (1.0, 0.5)
    }
    assert ways[1.0] == ways[0.5]
    assert len(set(ways[1.0])) == len(ways[1.0])  # no cache has seen any
    assert [result["requests"] for result in summary["results"]] == [2, 3]
    assert all(len(result["rounds"][way]) == 6 for result in summary["results"] for way in WAYS)


def test_a_summary_has_answers_tokens_blocks_and_times(fake: FakeVllm) -> None:
    summary = measured(fake)
    first, second = summary["clips"]
    assert (first["unpooled"], first["pooled"]) == ("five nine two", "five nine")
    assert (first["prompt_tokens"], first["kv_blocks"]) == ([45, 32], [2, 1])
    assert second["prompt_tokens"] == [70, 45]
    errors = summary["word_errors"]
    assert errors is not None
    assert errors["unpooled"]["deletions"] == 0
    assert errors["pooled"] == {"substitutions": 0, "deletions": 1, "insertions": 0, "words": 3}
    result = summary["results"][1]
    assert result["concurrency"] == 3
    parts = result["parts"]
    assert parts is not None
    assert list(parts) == [*WAYS]
    assert parts["pooled"]["prefill"] == pytest.approx(0.002)
    assert summary["provenance"]["versions"]["vllm"] == "0.0.1"
    json.dumps(summary)


def test_dummy_weights_have_no_answers_and_long_clips_are_made(fake: FakeVllm) -> None:
    summary = measured(fake, Options(0.5, (1,), 1, 6, 4, seconds=3.0, dummy_weights=True))
    assert summary["word_errors"] is None
    assert {clip["unpooled"] for clip in summary["clips"]} == {None}
    assert summary["timed"] is not None
    assert summary["timed"]["prompt_tokens"] == [95, 58]
    lengths = {len(soundfile.read(io.BytesIO(recording(one)))[0]) for one in fake.seen[6:]}
    assert lengths == {48000}
    assert "answers mean nothing" in html(page(summary))


def test_ratios_are_of_rounds_and_say_when_pooling_is_slower() -> None:
    def loads(seconds: list[float], first: float) -> list[Load]:
        return [Load(s, (Reply("", 9, 10, first, s),) * 2, None) for s in seconds]

    drift = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    faster = compared({"unpooled": loads(drift, 1.0), "pooled": loads([s / 2 for s in drift], 1.0)}, 2, 2)
    assert faster["requests_per_second"]["ratio_ci95"] == [2.0, 2.0]
    assert faster["requests_per_second"]["verdict"] == "pooling is 2.00x faster"
    assert faster["requests_per_second"]["unpooled"] == pytest.approx(2 / 6)
    assert faster["requests_per_second"]["pooled"] == pytest.approx(2 / 3)
    assert faster["output_tokens_per_second"]["pooled"] == pytest.approx(20 / 3)
    assert "no difference" in faster["first_token_seconds"]["verdict"]
    slower = compared({"unpooled": loads(drift, 1.0), "pooled": loads(drift, 1.25)}, 2, 2)
    assert slower["first_token_seconds"]["verdict"] == "pooling is 1.25x SLOWER"


def test_the_page_says_it_all(fake: FakeVllm) -> None:
    summary = measured(fake)
    for result, verdict in zip(summary["results"], ("pooling is 1.25x SLOWER", "pooling is 1.25x faster"), strict=True):
        result["first_token_seconds"]["verdict"] = verdict  # the clock's own would be another one in each run
    text = html(page(summary))
    for words in (
        "served by vLLM",
        "Pooling is SLOWER, a later first token, with 1 at once.",
        '<mark class="delete">two</mark>',
        "Where a request&#39;s time goes",
        "45 → 32",
        "of which the server has 512",
        "a note",
    ):
        assert words in text
