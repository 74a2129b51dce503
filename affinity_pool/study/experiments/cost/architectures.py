"""Models built from a config alone: cost does not depend on what the weights are, and 7B of them need not be had.

A config is a folder or JSON file as transformers writes them, the id of a model on the Hub, or a name of ``BUILT_IN``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...errors import InputError
from .forced import FRAMES, can_force

Config = Any
"""A transformers config."""


def qwen2_audio_7b() -> Config:
    """Qwen2-Audio-7B: a decoder of 32 layers and 4096 features, the encoder of Whisper large-v3."""
    return _config(
        audio={
            "num_mel_bins": 128,
            "d_model": 1280,
            "encoder_layers": 32,
            "encoder_attention_heads": 20,
            "encoder_ffn_dim": 5120,
            "max_source_positions": 1500,
        },
        text={
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "intermediate_size": 11008,
            "vocab_size": 156032,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
        },
        audio_token=151646,
    )


def mid() -> Config:
    """170 million parameters in the same proportions, for a CPU: 16 layers of 768 features, Whisper tiny's encoder.

    Of the operations of a prefill of 30 s the encoder does 15 %; in Qwen2-Audio-7B it is 18 %.
    """
    return _config(
        audio={
            "num_mel_bins": 80,
            "d_model": 384,
            "encoder_layers": 4,
            "encoder_attention_heads": 6,
            "encoder_ffn_dim": 1536,
            "max_source_positions": 1500,
        },
        text={
            "hidden_size": 768,
            "num_hidden_layers": 16,
            "num_attention_heads": 12,
            "num_key_value_heads": 12,
            "intermediate_size": 2048,
            "vocab_size": 32000,
            "max_position_embeddings": 8192,
        },
        audio_token=5,
    )


def tiny() -> Config:
    """The same path in a model of a few thousand parameters, which hears two seconds at once."""
    return _config(
        audio={
            "num_mel_bins": 8,
            "d_model": 32,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "max_source_positions": FRAMES,
        },
        text={
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 96,
            "vocab_size": 120,
            "max_position_embeddings": 1024,
        },
        audio_token=5,
    )


def whisper_large_v3_turbo() -> Config:
    """Whisper large-v3-turbo: 32 encoder layers and 4 decoder layers of 1280 features, 810 million parameters."""
    from transformers import WhisperConfig

    end = 50257
    return WhisperConfig(
        vocab_size=51866,
        num_mel_bins=128,
        d_model=1280,
        encoder_layers=32,
        encoder_attention_heads=20,
        encoder_ffn_dim=5120,
        decoder_layers=4,
        decoder_attention_heads=20,
        decoder_ffn_dim=5120,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=end + 1,
    )


BUILT_IN: dict[str, Callable[[], Config]] = {
    "qwen2-audio-7b": qwen2_audio_7b,
    "mid": mid,
    "tiny": tiny,
    "whisper-large-v3-turbo": whisper_large_v3_turbo,
}


def config_of(name: str) -> Config:
    """The config of that name; see the module.

    Raises:
        InputError: there is none, or its architecture's prompts cannot be made to pool as planned (see ``forced``).
    """
    if name in BUILT_IN:
        return BUILT_IN[name]()
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(f"{name} is neither {', '.join(BUILT_IN)} nor a config that can be read: {error}") from error
    if not can_force(config) and config.model_type != "whisper":
        raise InputError(
            f"{name} is a {config.model_type} model: prompts whose retention is planned can be made for the "
            "architectures of Qwen2-Audio and Whisper only. With its weights any of the study's models can be: --model"
        )
    return config


def random_model(config: Config, device: torch.device, dtype: torch.dtype) -> Any:
    """A model of random weights, made where and as it is used: 7B in float32 on the host would take minutes."""
    from transformers import Qwen2AudioForConditionalGeneration, WhisperForConditionalGeneration

    whisper = config.model_type == "whisper"
    architecture: Any = WhisperForConditionalGeneration if whisper else Qwen2AudioForConditionalGeneration
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model: Any = architecture(config)
    finally:
        torch.set_default_dtype(before)
    if whisper:
        model.generation_config.no_timestamps_token_id = (
            config.vocab_size - 1
        )  # none follow: else a window would be cut
        model.generation_config.is_multilingual = False  # no language is detected: that would be a second prefill
    else:
        model.generation_config.pad_token_id = 0
    return model.eval()


def _config(audio: dict[str, Any], text: dict[str, Any], audio_token: int) -> Config:
    from transformers import Qwen2AudioConfig

    return Qwen2AudioConfig(
        audio_config={"model_type": "qwen2_audio_encoder", **audio},
        text_config={"model_type": "qwen2", "pad_token_id": 0, "eos_token_id": None, **text},
        audio_token_index=audio_token,
    )
