"""Each family's small random checkpoint in vLLM: what it answers is what its judge does to the same pooled rows."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("vllm.version", reason="needs vLLM: make test-vllm")  # what follows needs what comes with it

import numpy as np
from checkpoints import FAMILIES
from engine import CLOSE, Request, ask

import affinity_pool
from affinity_pool.serving.vllm.architectures import ARCHITECTURES

SHARES = (1.0, 0.8, 0.5, 0.25)


def sound(seconds: float, seed: int) -> np.ndarray:
    """Tones that change, and noise: neighbouring rows are alike to different degrees."""
    draw = np.random.default_rng(seed)
    time = np.arange(int(seconds * 16_000)) / 16_000
    pitch = np.repeat(draw.uniform(100, 3000, 1 + int(seconds / 0.15)), 2400)[: len(time)]
    return (0.3 * np.sin(2 * np.pi * pitch * time) + 0.02 * draw.standard_normal(len(time))).astype(np.float32)


def test_every_architecture_has_a_checkpoint():
    tested = {family.architecture for family in FAMILIES.values()}
    assert tested | {"Qwen2_5OmniForConditionalGeneration"} >= set(ARCHITECTURES)  # another name for Qwen2_5OmniModel


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_are_those_to_the_same_pooled_rows(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    family.write(tmp_path)
    clips = [sound(seconds, seed) for seed, seconds in enumerate((1.3, 2.0, 3.1))]
    asked = [([clip], keep) for keep in SHARES for clip in clips]
    if family.clips > 1:
        asked += [(clips[1:], keep) for keep in (*SHARES, 0.5)]
    requests = [Request(family.prompt(heard), heard, keep) for heard, keep in asked]
    together = [requests, requests] if family.together else [[request] for request in requests]
    turns = ask(tmp_path, *together, max_model_len=2048, **family.options).turns
    judge = family.judge(tmp_path)
    answers = turns if family.together else [[answer for turn in turns for answer in turn]]
    shortened = set()
    for turn in answers:
        for (heard, keep), answer in zip(asked, turn, strict=True):
            assert not answer.refusal
            rows = [affinity_pool.pool_to(judge.rows(clip), keep).values for clip in heard]
            ids, logprobs, length = judge.answer(rows, len(answer.ids))
            assert answer.prompt_tokens == length, (len(heard), keep)
            assert answer.difference(ids, logprobs) < CLOSE, (len(heard), keep)
            shortened.add((len(heard), len(heard[0]), length))
    assert len(shortened) == len({(len(heard), len(heard[0]), keep) for heard, keep in asked})


def test_voxtral_as_mistrals_own_requests_come(tmp_path: Path) -> None:
    """Its prompts arrive expanded: a prompt that does not fit its clips is refused, and the engine goes on."""
    family = FAMILIES["Voxtral"]
    family.write(tmp_path)
    heard = [sound(1.0, 0)]
    prompt = family.prompt(heard)
    placeholder = max(set(prompt), key=prompt.count)
    one_less = list(prompt)
    one_less.remove(placeholder)
    asked = [[Request(one_less, heard, 0.5)], [Request(prompt, heard, 0.5)]]
    (refused,), (taken,) = ask(tmp_path, *asked, max_model_len=2048, **family.options).turns
    assert "audio placeholders for clips of" in refused.refusal
    assert taken.ids


def test_an_image_that_came_with_a_refused_prompt_is_sent_with_the_next(tmp_path: Path) -> None:
    """vLLM sends what it has processed once, and a prompt is refused after that."""
    family = FAMILIES["Qwen2.5-Omni"]
    family.write(tmp_path)
    heard = [sound(1.0, 0)]
    seen = [np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)]
    prompt = "<|vision_bos|><|IMAGE|><|vision_eos|>" + family.prompt(heard)
    asked = [
        [Request(text, heard, keep, images=seen)]
        for text, keep in ((prompt + "<|AUDIO|>", 0.5), (prompt, 0.5), (prompt, 0.8))
    ]
    media = {"limit_mm_per_prompt": {"audio": 1, "image": 1}}
    (refused,), (half,), (more,) = ask(tmp_path, *asked, **{**family.options, "max_model_len": 2048, **media}).turns
    assert "its text must not hold placeholders of its own" in refused.refusal
    assert half.ids
    assert more.prompt_tokens > half.prompt_tokens
