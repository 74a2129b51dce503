"""vLLM engines to ask, each in a process of its own: one engine leaves too much behind for the next."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
}
CACHE = tempfile.TemporaryDirectory()  # of what vLLM learns of model classes
OPTIONS = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 1024,
    "max_num_seqs": 8,
    "block_size": 32,  # the smallest that attention on the CPU takes: short prompts fill blocks for the prefix cache
    "limit_mm_per_prompt": {"audio": 4},
}


CLOSE = 1e-3
"""Of log-probabilities; float32 sums in another order differ by 1e-5."""


@dataclass(frozen=True)
class Request:
    """One prompt, what is heard in it, and what it asks of the plug-in."""

    prompt: str | list[int] | torch.Tensor
    """A tensor is the embeddings of the whole prompt."""
    clips: Sequence[np.ndarray] = ()
    """At 16 kHz."""
    keep: float | None = None
    embeddings: Sequence[torch.Tensor] = ()
    """In place of clips."""
    images: Sequence[Any] = ()
    """Beside clips."""
    processor_kwargs: dict[str, Any] = field(default_factory=dict)
    tokens: int = 8

    def as_vllm_takes_it(self) -> dict[str, Any]:
        asked = self.processor_kwargs if self.keep is None else {"affinity_pool": {"keep": self.keep}}
        if isinstance(self.prompt, torch.Tensor):
            return {"prompt_embeds": self.prompt}
        prompt = {"prompt" if isinstance(self.prompt, str) else "prompt_token_ids": self.prompt}
        if self.embeddings:
            prompt["multi_modal_data"] = {"audio": {"audio_embeds": list(self.embeddings)}}
        elif self.clips:
            prompt["multi_modal_data"] = {"audio": [(clip, 16_000) for clip in self.clips]}
            if self.images:
                prompt["multi_modal_data"]["image"] = list(self.images)
        return {**prompt, "mm_processor_kwargs": asked} if asked else prompt


@dataclass(frozen=True)
class Answer:
    """What an engine said to one request, or why it would not."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    refusal: str = ""

    def difference(self, ids: Sequence[int], logprobs: Sequence[float]) -> float:
        """The largest difference of a token's log-probability; infinite where a token is another."""
        if self.ids != list(ids):
            return float("inf")
        return max(abs(a - b) for a, b in zip(self.logprobs, logprobs, strict=True))


@dataclass(frozen=True)
class Session:
    """All that an engine said: an answer for each request of each turn."""

    turns: list[list[Answer]]
    encoded: list[int]
    """Clips of each call of the model's ``embed_multimodal`` that pools."""
    refusals: list[str]
    """Why the engine did not start, with each of the options tried before those with which it did."""
    log: str


def ask(
    checkpoint: Path,
    *turns: Sequence[Request],
    plugin: bool = True,
    attempts: Sequence[Mapping[str, Any]] = ({},),
    **options: Any,
) -> Session:
    """Start an engine, send it each turn's requests together, and end it.

    Args:
        plugin: False: vLLM as it is.
        attempts: options of ``vllm.LLM``, tried one after the other until an engine starts.
        options: of ``vllm.LLM`` in all attempts, before :data:`OPTIONS`.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder, "asked"), Path(folder, "answered")
        asked.write_bytes(pickle.dumps((checkpoint, [{**OPTIONS, **options, **more} for more in attempts], turns)))
        process = subprocess.run(
            [sys.executable, Path(__file__).with_name("engine_process.py"), asked, answered],
            env={
                **os.environ,
                **ENVIRONMENT,
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                "VLLM_CACHE_ROOT": CACHE.name,
                **({} if plugin else {"VLLM_PLUGINS": ""}),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
        )
        if not answered.exists():
            raise RuntimeError(f"the engine ended with {process.returncode}:\n{process.stdout[-6000:]}")
        return Session(*pickle.loads(answered.read_bytes()), process.stdout)
