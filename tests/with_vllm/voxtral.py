"""Voxtral: a checkpoint in Mistral's own format, which is the only one that vLLM reads.

transformers has the same model under other names: its copy lies beside, in a folder of its own, for the judge.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from family import DECODER, QUESTION, RATE, Family
from judge import Judge
from mistral_common.tokens.tokenizers.base import SpecialTokens
from random_weights import scatter
from safetensors.torch import save_file

SPECIAL = [str(token.value) for token in SpecialTokens]
VOCABULARY = len(SPECIAL) + 256
"""The special tokens, then the bytes."""
AUDIO = SPECIAL.index("[AUDIO]")

SECONDS = 2
"""Of a window. A clip is padded to whole ones; the published 30 s would only be slower."""
ROWS_A_SECOND = 12.5
HOP, MEL_BINS = 160, 80
ENCODER_ROWS_A_ROW = 4
POSITIONS = SECONDS * RATE // HOP // 2

NAMES = {
    r"^model\.audio_tower\.": "mm_whisper_embeddings.whisper_encoder.",
    r"^model\.multi_modal_projector\.linear_1\.": "mm_whisper_embeddings.audio_language_projection.0.",
    r"^model\.multi_modal_projector\.linear_2\.": "mm_whisper_embeddings.audio_language_projection.2.",
    r"^model\.language_model\.embed_tokens\.": "mm_whisper_embeddings.tok_embeddings.",
    r"^model\.language_model\.": "",
    r"^lm_head\.": "output.",
    r"\.conv1\.": ".conv_layers.0.",
    r"\.conv2\.": ".conv_layers.1.",
    r"whisper_encoder\.layers\.": "whisper_encoder.transformer.layers.",
    r"whisper_encoder\.layer_norm\.": "whisper_encoder.transformer.norm.",
    r"\.self_attn\.([qkv])_proj\.": r".attention.w\1.",
    r"\.self_attn\.(o|out)_proj\.": ".attention.wo.",
    r"\.self_attn_layer_norm\.|\.input_layernorm\.": ".attention_norm.",
    r"\.final_layer_norm\.|\.post_attention_layernorm\.": ".ffn_norm.",
    r"\.mlp\.gate_proj\.|\.fc1\.": ".feed_forward.w1.",
    r"\.mlp\.down_proj\.|\.fc2\.": ".feed_forward.w2.",
    r"\.mlp\.up_proj\.": ".feed_forward.w3.",
}
"""What transformers calls the weights, and Mistral."""


def model() -> Any:
    """The model in transformers, with the sines as positions that vLLM computes itself."""
    config = transformers.VoxtralConfig(
        audio_config={
            "num_mel_bins": MEL_BINS,
            "max_source_positions": POSITIONS,
            "hidden_size": 64,
            "intermediate_size": 64 * ENCODER_ROWS_A_ROW,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
        text_config={"model_type": "llama", **DECODER, "vocab_size": VOCABULARY, "head_dim": 32, "rope_theta": 1e4},
        audio_token_id=AUDIO,
        tie_word_embeddings=False,
    )
    voxtral = scatter(transformers.VoxtralForConditionalGeneration(config))
    with torch.no_grad():
        positions = voxtral.model.audio_tower.embed_positions.weight
        rates = torch.exp(torch.arange(32) * (-math.log(10_000) / 31))
        angles = torch.arange(POSITIONS)[:, None] * rates
        positions.copy_(torch.cat([angles.sin(), angles.cos()], dim=1))
    return voxtral


def in_mistrals_format(voxtral: Any) -> dict[str, torch.Tensor]:
    """The weights by Mistral's names, the decoder's queries and keys with the two halves of a head interleaved."""
    weights = {}
    for name, weight in voxtral.state_dict().items():
        if name.endswith("embed_positions.weight"):
            continue
        if re.search(r"language_model.*\.[qk]_proj\.", name):
            weight = weight.view(-1, 2, 16, 64).transpose(1, 2).reshape(weight.shape)
        for pattern, replacement in NAMES.items():
            name = re.sub(pattern, replacement, name)
        weights[name] = weight.contiguous()
    return weights


def parameters(text: Any) -> dict[str, Any]:
    """``params.json``: what the configuration of transformers says, in Mistral's words."""
    return {
        "dim": 64,
        "n_layers": text.num_hidden_layers,
        "head_dim": 32,
        "hidden_dim": text.intermediate_size,
        "n_heads": 2,
        "n_kv_heads": text.num_key_value_heads,
        "rope_theta": 1e4,
        "norm_eps": text.rms_norm_eps,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": text.max_position_embeddings,
        "multimodal": {
            "whisper_model_args": {
                "encoder_args": {
                    "audio_encoding_args": {
                        "sampling_rate": RATE,
                        "num_mel_bins": MEL_BINS,
                        "window_size": 400,
                        "hop_length": HOP,
                    },
                    "dim": 64,
                    "n_layers": 2,
                    "head_dim": 32,
                    "hidden_dim": 64 * ENCODER_ROWS_A_ROW,
                    "n_heads": 2,
                    "vocab_size": VOCABULARY,
                    "max_source_positions": POSITIONS,
                },
                "downsample_args": {"downsample_factor": ENCODER_ROWS_A_ROW},
            }
        },
    }


def tokenizer() -> dict[str, Any]:
    """``tekken.json`` with no token of text longer than a byte."""
    return {
        "config": {
            "pattern": ".|\\n",
            "num_vocab_tokens": 256,
            "default_vocab_size": VOCABULARY,
            "default_num_special_tokens": len(SPECIAL),
            "version": "v7",
        },
        "vocab": [
            {"rank": byte, "token_bytes": base64.b64encode(bytes([byte])).decode(), "token_str": None}
            for byte in range(256)
        ],
        "special_tokens": [
            {"rank": rank, "token_str": token, "is_control": True} for rank, token in enumerate(SPECIAL)
        ],
        "audio": {
            "sampling_rate": RATE,
            "frame_rate": ROWS_A_SECOND,
            "audio_encoding_config": {"num_mel_bins": MEL_BINS, "hop_length": HOP, "window_size": 400},
            "chunk_length_s": float(SECONDS),
        },
    }


def windows(audio: np.ndarray) -> int:
    """How many a clip takes."""
    return math.ceil(len(audio) / (SECONDS * RATE))


def ids(placeholders: Sequence[int]) -> list[int]:
    """The prompt of an instruction: each clip as so many placeholders, then the question."""
    prompt = [SPECIAL.index("<s>"), SPECIAL.index("[INST]")]
    for count in placeholders:
        prompt += [SPECIAL.index("[BEGIN_AUDIO]"), *[AUDIO] * count]
    return [*prompt, *(len(SPECIAL) + byte for byte in QUESTION.encode()), SPECIAL.index("[/INST]")]


class Voxtral(Family):
    def write(self, folder: Path) -> None:
        voxtral = model()
        voxtral.generation_config.eos_token_id = None
        voxtral.save_pretrained(folder / "transformers")
        save_file(in_mistrals_format(voxtral), folder / "consolidated.safetensors", metadata={"format": "pt"})
        (folder / "params.json").write_text(json.dumps(parameters(voxtral.config.text_config), indent=2))
        (folder / "tekken.json").write_text(json.dumps(tokenizer(), indent=2))

    def prompt(self, clips: Sequence[np.ndarray]) -> list[int]:
        """Mistral's tokenizer puts in the placeholders before vLLM sees the prompt; so does this."""
        return ids([int(windows(clip) * SECONDS * ROWS_A_SECOND) for clip in clips])

    def judge(self, folder: Path) -> Judge:
        voxtral = transformers.VoxtralForConditionalGeneration.from_pretrained(
            folder / "transformers", dtype=torch.float32
        ).eval()
        frames = transformers.WhisperFeatureExtractor(feature_size=MEL_BINS, chunk_length=SECONDS)

        def encode(audio: np.ndarray) -> torch.Tensor:
            padded = np.pad(audio, (0, windows(audio) * SECONDS * RATE - len(audio)))
            mel = frames(padded, sampling_rate=RATE, truncation=False, return_tensors="pt")["input_features"][0]
            features = mel.reshape(MEL_BINS, -1, SECONDS * RATE // HOP).transpose(0, 1)
            return voxtral.get_audio_features(features).pooler_output

        return Judge(voxtral, lambda clips: ids([1] * clips), AUDIO, encode)


FAMILIES = {
    "Voxtral": Voxtral(
        architecture="VoxtralForConditionalGeneration",
        options={"tokenizer_mode": "mistral", "config_format": "mistral", "load_format": "mistral"},
    ),
}
