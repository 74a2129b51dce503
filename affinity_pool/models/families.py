"""Where each model family keeps what the hooks need. To add one, add its ``config.model_type`` to ``FAMILIES``.

The defaults fit models that join an audio tower to a decoder called ``language_model`` and replace placeholder tokens
in ``input_ids`` by audio embeddings before the first decoder layer. Models that add audio to every token, or attend to
it by cross-attention, have no audio positions to pool and do not belong here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


def language_model(model: Any) -> Any:
    """The decoder: the module that holds ``layers`` and ``rotary_emb``."""
    holder = model.model if hasattr(getattr(model, "model", None), "language_model") else model
    decoder = holder.language_model
    return decoder if hasattr(decoder, "layers") else decoder.model  # transformers 4 keeps the head in between


def audio_token_id(config: Any) -> int:
    """The id of the placeholder that stands for one audio embedding."""
    token = getattr(config, "audio_token_id", None)
    return config.audio_token_index if token is None else token


@dataclass(frozen=True)
class Family:
    """How to find the decoder, the audio positions, and whether a call carries audio."""

    features: str = "input_features"
    """Keyword of the model's forward that carries the audio: a call without it is text or decoding."""
    decoder: Callable[[Any], Any] = language_model
    audio_token_id: Callable[[Any], int] = audio_token_id


FAMILIES: dict[str, Family] = {
    "qwen2_audio": Family(),
    "voxtral": Family(),
    "audioflamingo3": Family(),
}


def family_of(model: Any) -> Family:
    """Look a model's family up by ``config.model_type``; an unknown one is refused by name."""
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise TypeError(f"model must be a transformers model, got {type(model).__name__}")
    kind = getattr(model.config, "model_type", None)
    if kind not in FAMILIES:
        raise NotImplementedError(
            f"{type(model).__name__} (model_type {kind!r}) is not supported, only {', '.join(FAMILIES)}: "
            "if it replaces audio placeholders by embeddings, add a Family to affinity_pool.models.FAMILIES"
        )
    return FAMILIES[kind]
