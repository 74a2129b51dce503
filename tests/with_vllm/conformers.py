"""Families that hear through a conformer: Granite Speech, whose Q-Former makes 3 rows of each 15 frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from family import DECODER, TransformersFamily
from small_tokenizer import character_tokenizer


def granite_speech() -> tuple[Any, Any]:
    tokenizer = character_tokenizer("<|audio|>")
    config = transformers.GraniteSpeechConfig(
        text_config={
            "model_type": "granite",
            "architectures": ["GraniteForCausalLM"],
            **DECODER,
            "embedding_multiplier": 2.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.2,
            "logits_scaling": 1.0,  # transformers leaves it out of a model that hears
        },
        encoder_config={
            "input_dim": 160,  # two frames of 80 bands, which vLLM insists on
            "num_layers": 2,
            "hidden_dim": 64,
            "feedforward_mult": 2,
            "num_heads": 2,
            "output_dim": 8,
            "context_size": 50,
            "max_pos_emb": 50,
            "conv_kernel_size": 3,
        },
        projector_config={
            "model_type": "blip_2_qformer",
            "hidden_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 128,
            "encoder_hidden_size": 64,
        },
        audio_token_index=tokenizer.convert_tokens_to_ids("<|audio|>"),
        has_lora_adapter=False,
        tie_word_embeddings=False,
    )
    frames = transformers.GraniteSpeechFeatureExtractor()
    return transformers.GraniteSpeechForConditionalGeneration(config), transformers.GraniteSpeechProcessor(
        frames, tokenizer
    )


def granite_speech_rows(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    rows = model.get_audio_features(inputs["input_features"]).pooler_output
    return rows[inputs["input_features_mask"]]


FAMILIES = {
    "Granite Speech": TransformersFamily(
        architecture="GraniteSpeechForConditionalGeneration",
        build=granite_speech,
        clip="<|audio|>",
        placeholder="<|audio|>",
        rows=granite_speech_rows,
        clips=1,  # vLLM's limit
        together=False,
    ),
}
