"""Ultravox: a Whisper encoder, eight of whose frames side by side make one audio token of a Llama.

transformers has no Ultravox. The judge is put together here: the encoder's layers and the Llama are transformers', and
the projector between them is a few lines of our own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import stand_in_ultravox
import torch
import transformers
from family import DECODER, QUESTION, Family
from judge import Judge
from random_weights import scatter
from safetensors.torch import load_file, save_file
from small_tokenizer import VOCABULARY, character_tokenizer
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from whisper_encoders import MEL_BINS, WHISPER

CLIP = "<|audio|>"
STACKED = 8
SECONDS = 4
"""Of a window: vLLM tries sixteen of them when it starts."""


class Projector(torch.nn.Module):
    """Frames side by side, normalized, through a gated layer, normalized, to the decoder's width."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.ln_pre = torch.nn.RMSNorm(width * STACKED, eps=1e-6)
        self.linear_1 = torch.nn.Linear(width * STACKED, hidden, bias=False)
        self.ln_mid = torch.nn.RMSNorm(hidden // 2, eps=1e-6)
        self.linear_2 = torch.nn.Linear(hidden // 2, out, bias=False)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        value, gate = self.linear_1(self.ln_pre(frames.reshape(-1, self.ln_pre.weight.numel()))).chunk(2, dim=-1)
        return self.linear_2(self.ln_mid(value * torch.nn.functional.silu(gate)))


class Ultravox(torch.nn.Module):
    """The whole model, its weights under the names of published checkpoints."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        encoder = transformers.WhisperConfig(**config["audio_config"])
        decoder = transformers.LlamaConfig(**config["text_config"])
        self.audio_tower = WhisperEncoder(encoder)
        self.multi_modal_projector = Projector(encoder.d_model, config["hidden_size"], decoder.hidden_size)
        self.language_model = transformers.LlamaForCausalLM(decoder)

    def rows(self, mel: torch.Tensor) -> torch.Tensor:
        """Of one window ``[bins, frames]`` without padding: ``WhisperEncoder.forward`` would want a full one."""
        tower = self.audio_tower
        hidden = torch.nn.functional.gelu(tower.conv1(mel[None]))
        hidden = torch.nn.functional.gelu(tower.conv2(hidden)).transpose(1, 2)
        hidden = hidden + tower.embed_positions.weight[: hidden.shape[1]]
        for layer in tower.layers:
            output = layer(hidden, None)
            hidden = output[0] if isinstance(output, tuple) else output
        return self.multi_modal_projector(tower.layer_norm(hidden)[0])


class UltravoxFamily(Family):
    def write(self, folder: Path) -> None:
        tokenizer = character_tokenizer(CLIP)
        config = {
            "model_type": "ultravox",
            "architectures": [self.architecture],
            "audio_config": {**WHISPER, "model_type": "whisper", "max_source_positions": SECONDS * 50},
            "text_config": {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **DECODER},
            "audio_token_index": tokenizer.convert_tokens_to_ids(CLIP),
            "hidden_size": 128,
            "vocab_size": VOCABULARY,
            "stack_factor": STACKED,
            "projector_act": "swiglu",
            "projector_ln_mid": True,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2))
        weights = {name: weight.contiguous() for name, weight in scatter(Ultravox(config)).state_dict().items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        frames = transformers.WhisperFeatureExtractor(feature_size=MEL_BINS, chunk_length=SECONDS)
        stand_in_ultravox.UltravoxStandIn(frames, tokenizer).save_pretrained(folder)
        shutil.copy(stand_in_ultravox.__file__, folder)
        file = folder / "processor_config.json"
        auto = {"auto_map": {"AutoProcessor": "stand_in_ultravox.UltravoxStandIn"}}
        file.write_text(json.dumps({**json.loads(file.read_text()), **auto}, indent=2))

    def prompt(self, clips: Sequence[np.ndarray]) -> str:
        return CLIP * len(clips) + QUESTION

    def judge(self, folder: Path) -> Judge:
        ultravox = Ultravox(json.loads((folder / "config.json").read_text()))
        ultravox.load_state_dict(load_file(folder / "model.safetensors"))
        processor = stand_in_ultravox.UltravoxStandIn.from_pretrained(folder)

        def encode(audio: np.ndarray) -> torch.Tensor:
            return torch.cat([ultravox.rows(mel) for mel in processor.windows(audio)])

        def ids(clips: int) -> list[int]:
            return processor.tokenizer(CLIP * clips + QUESTION)["input_ids"]

        placeholder = processor.tokenizer.convert_tokens_to_ids(CLIP)
        return Judge(ultravox.eval().language_model, ids, placeholder, encode)


FAMILIES = {
    "Ultravox": UltravoxFamily(
        architecture="UltravoxModel",
        seconds=(0.2, 2.0 * SECONDS),
        options={"trust_remote_code": True},
    ),
}
