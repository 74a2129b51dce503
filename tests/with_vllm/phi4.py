"""Phi-4-multimodal: a conformer makes one audio token of eight mel frames. In the layout of the published checkpoint.

transformers has the model under names of its own: its copy lies beside, in a folder of its own, for the judge.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import stand_in_phi4
import torch
import transformers
from family import DECODER, QUESTION, Family
from judge import Judge
from random_weights import scatter
from safetensors.torch import save_file
from small_tokenizer import character_tokenizer

PLACEHOLDER = 200_011
"""What vLLM puts in for audio, whatever the checkpoint says: hence a table that large."""
TEXT = {**DECODER, "vocab_size": 200_064, "tie_word_embeddings": True}
CONFORMER = {"attention_dim": 64, "attention_heads": 2, "linear_units": 128, "num_blocks": 2}
BINS, CHANNELS, FARTHEST = 80, 16, 100

AUDIO = "model.embed_tokens_extend.audio_embed."
NAMES = {
    r"_embed\.up_proj_for_speech\.": "_embed.audio_projection.speech.0.",
    r"_embed\.down_proj_for_speech\.": "_embed.audio_projection.speech.2.",
    r"_embed\.up_proj_for_vision_speech\.": "_embed.audio_projection.vision.0.",
    r"_embed\.down_proj_for_vision_speech\.": "_embed.audio_projection.vision.2.",
    r"(feed_forward_\w+)\.gate_up_proj\.": r"\1.net.0.linear.",
    r"(feed_forward_\w+)\.down_proj\.": r"\1.net.2.",
    r"(encoders\.\d+\.self_attn)\.([qkv])_proj\.": r"\1.linear_\2.",
    r"(encoders\.\d+\.self_attn)\.o_proj\.": r"\1.linear_out.",
}
"""What transformers calls the weights, and the published checkpoint."""


def model() -> Any:
    """The model in transformers."""
    config = transformers.Phi4MultimodalConfig(
        **TEXT,
        original_max_position_embeddings=TEXT["max_position_embeddings"],
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "crop_size": 28,
        },
        audio_config={
            "input_size": BINS,
            "hidden_size": CONFORMER["attention_dim"],
            "num_attention_heads": CONFORMER["attention_heads"],
            "intermediate_size": CONFORMER["linear_units"],
            "num_blocks": CONFORMER["num_blocks"],
            "ext_pw_out_channel": CONFORMER["attention_dim"],
            "depthwise_separable_out_channel": CONFORMER["attention_dim"],
            "nemo_conv_channels": CHANNELS,
            "bias_max_distance": FARTHEST,
            "audio_token_id": PLACEHOLDER,
        },
    )
    phi = scatter(transformers.Phi4MultimodalForCausalLM(config))
    heard = phi.model.embed_tokens_extend.audio_embed.encoder.encoder_embedding
    heard.global_mean.fill_(8.0)  # logarithms of energies, which are far from zero
    heard.global_invstd.fill_(0.3)
    return phi


def published_config(architecture: str) -> dict[str, Any]:
    """As vLLM reads it, but for the model's type: a Llama needs no code beside the checkpoint."""
    conformer = {
        **CONFORMER,
        "input_size": BINS,
        "input_layer": "nemo_conv",
        "nemo_conv_settings": {"conv_channels": CHANNELS},
        "encoder_embedding_config": {"input_size": BINS},
        "relative_attention_bias_args": {"type": "t5", "t5_bias_max_distance": FARTHEST},
        "time_reduction": 8,
        "chunk_size": -1,
        "left_chunk": 18,
        "dropout_rate": 0.0,
        "causal": True,
        "kernel_size": 3,
        "ext_pw_out_channel": CONFORMER["attention_dim"],
        "depthwise_seperable_out_channel": CONFORMER["attention_dim"],
        "activation": "swish",
        "conv_activation": "swish",
        "conv_glu_type": "swish",
    }
    embedding = {
        "embedding_cls": "audio",
        "compression_rate": 8,
        "downsample_rate": 1,
        "projection_cls": "mlp",
        "use_qformer": False,
        "use_conv_downsample": False,
    }
    return {
        **TEXT,
        "model_type": "llama",
        "architectures": [architecture],
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "img_processor": None,
        "embd_layer": {"embedding_cls": "image_audio", "audio_embd_layer": embedding},
        "audio_processor": {"name": "cascades", "config": conformer},
    }


class Phi4(Family):
    def write(self, folder: Path) -> None:
        phi = model()
        phi.generation_config.eos_token_id = None
        phi.save_pretrained(folder / "transformers")
        weights = {}
        for name, weight in phi.state_dict().items():
            if "image_embed" in name or name.startswith("lm_head"):
                continue
            if name.startswith(AUDIO):
                for pattern, replacement in NAMES.items():
                    name = re.sub(pattern, replacement, name)
            weights[name] = weight.contiguous()
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(published_config(self.architecture), indent=2))
        tokenizer = character_tokenizer("<|audio_1|>", "<|audio_2|>")
        stand_in_phi4.Phi4StandIn(transformers.Phi4MultimodalFeatureExtractor(), tokenizer).save_pretrained(folder)
        shutil.copy(stand_in_phi4.__file__, folder)
        file = folder / "processor_config.json"
        auto = {"auto_map": {"AutoProcessor": "stand_in_phi4.Phi4StandIn"}}
        file.write_text(json.dumps({**json.loads(file.read_text()), **auto}, indent=2))

    def prompt(self, clips: Sequence[np.ndarray]) -> str:
        return "".join(f"<|audio_{number + 1}|>" for number in range(len(clips))) + QUESTION

    def judge(self, folder: Path) -> Judge:
        phi = transformers.Phi4MultimodalForCausalLM.from_pretrained(
            folder / "transformers", dtype=torch.float32
        ).eval()
        processor = stand_in_phi4.Phi4StandIn.from_pretrained(folder)
        audio_embed = phi.model.embed_tokens_extend.audio_embed

        def encode(audio: np.ndarray) -> torch.Tensor:
            encoded = audio_embed.encoder(processor.frames(audio)[None], None)
            hidden = torch.nn.functional.gelu(audio_embed.up_proj_for_speech(encoded))
            return audio_embed.down_proj_for_speech(hidden)[0]

        def ids(clips: int) -> list[int]:
            question = processor.tokenizer(QUESTION)["input_ids"]
            return [PLACEHOLDER] * clips + question

        return Judge(phi, ids, PLACEHOLDER, encode)


FAMILIES = {
    "Phi-4-multimodal": Phi4(
        architecture="Phi4MMForCausalLM",
        options={
            "trust_remote_code": True,
            # The encoder of images has the published size whatever the checkpoint says: it is left out.
            "limit_mm_per_prompt": {"audio": 2, "image": 0, "video": 0},
        },
    ),
}
