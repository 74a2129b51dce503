"""The OpenAI-compatible server on loopback, with a real client: a share for each request, many at once, a restart."""

from __future__ import annotations

import base64
import io
import json
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm.version", reason="needs vLLM: make test-vllm")  # what follows needs what comes with it

import numpy as np
import openai
import soundfile
from bundled import NAMES, Bundled
from engine import ENVIRONMENT

import affinity_pool
from affinity_pool.study.experiments.serving.server import free_port, running

DEFAULT = 0.8
SHARES = (None, 1.0, 0.8, 0.5, 0.25)
OPTIONS = (
    *("--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "16", "--block-size", "32"),
    *("--limit-mm-per-prompt", '{"audio": 4}', "--trust-request-mm-kwargs", "--served-model-name", "tiny"),
)

Said = tuple[int, str]
"""Prompt tokens and text of an answer."""


@contextmanager
def serving(folder: Path, log: Path, keep: Any) -> Iterator[openai.OpenAI]:
    port, settings = free_port(), json.dumps({"affinity_pool": {"keep": keep}})
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), *OPTIONS]
    command += ["--host", "127.0.0.1", "--port", str(port), "--hf-overrides", settings]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        with running(command, port, log) as url:
            yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300)


def ask(client: openai.OpenAI, *clips: np.ndarray, keep: Any = None, **more: Any) -> Said:
    parts = [{"type": "input_audio", "input_audio": {"data": wav(clip), "format": "wav"}} for clip in clips]
    asked = {} if keep is None else {"mm_processor_kwargs": {"affinity_pool": {"keep": keep}}}
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": [*parts, {"type": "text", "text": "transcribe"}]}],
        max_tokens=12,
        temperature=0,
        extra_body={**asked, **more},
    )
    return answer.usage.prompt_tokens, answer.choices[0].message.content.strip()


def wav(clip: np.ndarray) -> str:
    """16 bits are what the recordings have: nothing is lost."""
    file = io.BytesIO()
    soundfile.write(file, clip, 16_000, format="WAV", subtype="PCM_16")
    return base64.b64encode(file.getvalue()).decode()


def expected(tiny: Bundled, *clips: np.ndarray, keep: float | None) -> Said:
    """What transformers says."""
    judge, tokenizer = tiny.judge(), tiny.processor.tokenizer
    rows = [affinity_pool.pool_to(judge.rows(clip), keep or DEFAULT).values for clip in clips]
    ids, _, length = judge.answer(rows, 12, end=tokenizer.eos_token_id)
    return length, tokenizer.decode(ids, skip_special_tokens=True).strip()


@pytest.fixture(scope="module")
def tiny(bundled: Path) -> Bundled:
    return Bundled(bundled)


@pytest.fixture(scope="module")
def client(tiny: Bundled, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with serving(tiny.folder, log, {"min": 0.2, "default": DEFAULT}) as up:
        yield up


def test_each_request_gets_its_share(client, tiny):
    lengths = set()
    for name in NAMES[:3]:
        for keep in SHARES:
            said = ask(client, tiny.audio[name], keep=keep)
            assert said == expected(tiny, tiny.audio[name], keep=keep), (name, keep)
            lengths.add((name, said[0]))
    assert len(lengths) == 3 * 4  # the default is among the shares: else nothing was shown
    two = [tiny.audio[name] for name in NAMES[:2]]
    assert ask(client, *two, keep=0.5) == expected(tiny, *two, keep=0.5)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"affinity_pool": {"keep": 7}}, "above 0 and up to 1, got 7"),
        ({"affinity_pool": {"keep": 0.1}}, "keep must be in 0.2..1 on this server, got 0.1"),
        ({"affinity_pool": {"kept": 0.5}}, "expected"),
        ({"affinity_pool": "half"}, "expected"),
        ({"audio_kwargs": {"affinity_pool": {"keep": 0.5}}}, "it was found in audio_kwargs"),
    ],
    ids=["too much", "out of bounds", "another word", "no settings", "elsewhere"],
)
def test_a_bad_request_is_a_400_with_our_sentence_and_the_next_is_served(client, tiny, kwargs, words):
    clip = tiny.audio[NAMES[0]]
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, clip, mm_processor_kwargs=kwargs)
    assert words in str(error.value)
    assert ask(client, clip) == expected(tiny, clip, keep=None)


def test_hundreds_at_once_of_all_shares_and_bad_ones_among_them(client, tiny):
    """Every request is heard for the first time: no two clips begin at the same sample."""
    wanted = [(tiny.audio[NAMES[i % 5]][37 * i :], SHARES[i // 5 % 5]) for i in range(300)]
    for at in range(7, 320, 20):
        wanted.insert(at, (tiny.audio[NAMES[0]], 7))

    def one(request: tuple[np.ndarray, Any]) -> Said | str:
        try:
            return ask(client, request[0], keep=request[1])
        except openai.BadRequestError as error:
            return str(error)

    with ThreadPoolExecutor(24) as threads:
        answers = list(threads.map(one, wanted))
    seen = Counter()
    for (clip, keep), answer in zip(wanted, answers, strict=True):
        if keep == 7:
            assert "above 0 and up to 1, got 7" in answer
        else:
            assert answer == expected(tiny, clip, keep=keep), keep
        seen[keep] += 1
    assert seen == {**dict.fromkeys(SHARES, 60), 7: 16}


def test_after_a_restart_with_another_default_all_is_as_before(client, tiny, tmp_path):
    """The servers share what vLLM keeps on disk."""
    clip = tiny.audio[NAMES[1]]
    with serving(tiny.folder, tmp_path / "log.txt", 0.5) as again:
        for keep in SHARES:
            assert ask(again, clip, keep=keep) == expected(tiny, clip, keep=keep or 0.5)
    assert ask(client, clip) == expected(tiny, clip, keep=None)
