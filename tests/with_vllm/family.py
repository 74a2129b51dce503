"""One model family: how to write a small random checkpoint of it, how to ask it, and who judges its answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from judge import Judge
from random_weights import save, scatter
from small_tokenizer import VOCABULARY

RATE = 16_000
HEAD = {r"^language_model.lm_head": "lm_head"}
"""What some checkpoints call the head, and transformers does."""
QUESTION = "What is said?\n"
DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""Heads of 32, the least that vLLM's attention on CPUs takes."""


def audio_features(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The rows of one clip, as most models in transformers give them."""
    features = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    return model.get_audio_features(**features).pooler_output


@dataclass(frozen=True, kw_only=True)
class Family(ABC):
    """What all families have: a checkpoint, requests, a judge."""

    architecture: str
    """Its name in vLLM's registry."""
    clips: int = 2
    """The most clips that a prompt may have here; two are enough to see that they are kept apart."""
    seconds: tuple[float, float] = (0.2, 30.0)
    """How short and how long a clip may be."""
    together: bool = True
    """Whether clips of different lengths may be asked about at once: else vLLM itself pads them and lets the padding
    into their rows, and only requests sent one by one have one answer."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of ``vllm.LLM``."""

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Put a checkpoint with processor and tokenizer into an empty folder."""

    @abstractmethod
    def prompt(self, clips: Sequence[np.ndarray]) -> str | list[int]:
        """A question about these clips, as text or as token ids."""

    @abstractmethod
    def judge(self, folder: Path) -> Judge:
        """The same checkpoint outside vLLM."""


@dataclass(frozen=True, kw_only=True)
class TransformersFamily(Family):
    """A family whose checkpoints transformers writes and reads itself."""

    build: Callable[[], tuple[Any, Any]]
    """A model of a few thousand parameters, and its processor."""
    clip: str
    """What stands in a prompt for one clip; it contains ``placeholder`` once."""
    placeholder: str
    rows: Callable[[Any, Mapping[str, torch.Tensor]], torch.Tensor] = audio_features
    transformers_name: str | None = None
    """The model's class there, if it is not the architecture."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Patterns of what transformers calls the weights, and what vLLM does."""

    def write(self, folder: Path) -> None:
        model, processor = self.build()
        save(scatter(model), processor, folder, self.names)

    def prompt(self, clips: Sequence[np.ndarray]) -> str:
        return self.clip * len(clips) + QUESTION

    def judge(self, folder: Path) -> Judge:
        kind = getattr(transformers, self.transformers_name or self.architecture)
        model = kind.from_pretrained(folder, dtype=torch.float32, key_mapping=HEAD).eval()
        processor = transformers.AutoProcessor.from_pretrained(folder)
        tokenizer = processor.tokenizer

        def encode(audio: np.ndarray) -> torch.Tensor:
            inputs = processor(text=self.prompt([audio]), audio=audio, sampling_rate=RATE, return_tensors="pt")
            return self.rows(model, inputs)

        def ids(clips: int) -> list[int]:
            return tokenizer(self.clip * clips + QUESTION)["input_ids"]

        return Judge(model, ids, tokenizer.convert_tokens_to_ids(self.placeholder), encode)
