"""The bundled model with its recordings: prompts for it, and what transformers says of them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from engine import CLOSE, Answer, Request
from judge import Judge

import affinity_pool
from affinity_pool.serving import embed
from affinity_pool.study.bundled import BUNDLED

NAMES = ("allison-room", "allison-callsign", "allison-number", "allison-keys", "librivox-0880")
UNPOOLED = [affinity_pool.Site(layer=0, keep=1.0)]


class Bundled:
    """One checkpoint folder: the bundled one, hearing 30 s."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        recordings = BUNDLED / "recordings"
        self.audio = {name: soundfile.read(recordings / f"{name}.flac", dtype="float32")[0] for name in NAMES}

    @cached_property
    def processor(self) -> Any:
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(self.folder)

    @cached_property
    def model(self) -> Any:
        from transformers import Qwen2AudioForConditionalGeneration

        return Qwen2AudioForConditionalGeneration.from_pretrained(self.folder, dtype=torch.float32).eval()

    def prompt(self, clips: int = 1, text: str = "transcribe") -> str:
        content = [{"type": "audio", "audio_url": "-"}] * clips + [{"type": "text", "text": text}]
        turn = [{"role": "user", "content": content}]
        return self.processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)

    def inputs(self, audio: np.ndarray) -> Any:
        """What transformers' model takes for one clip."""
        return self.processor(text=self.prompt(), audio=audio, sampling_rate=16_000, return_tensors="pt")

    def judge(self, text: str = "transcribe") -> Judge:
        tokenizer = self.processor.tokenizer
        return Judge(
            self.model,
            lambda clips: tokenizer(self.prompt(clips, text))["input_ids"],
            tokenizer.convert_tokens_to_ids(self.processor.audio_token),
            lambda audio: embed(self.model, self.inputs(audio), UNPOOLED)[0].audio_embeds[0],
        )

    def request(self, *names: str, keep: float | None = None, text: str = "transcribe", **kwargs: Any) -> Request:
        return Request(self.prompt(len(names), text), [self.audio[name] for name in names], keep, **kwargs)

    def check(self, answer: Answer, names: tuple[str, ...], keep: float, text: str = "transcribe") -> None:
        """Raise unless transformers says the same to the same pooled rows."""
        assert not answer.refusal
        judge = self.judge(text)
        pooled = [affinity_pool.pool_to(judge.rows(self.audio[name]), keep).values for name in names]
        ids, logprobs, length = judge.answer(pooled, len(answer.ids))
        assert answer.prompt_tokens == length
        assert answer.difference(ids, logprobs) < CLOSE
