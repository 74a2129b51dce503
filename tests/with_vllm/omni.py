"""The thinker of Qwen2.5-Omni: a Whisper encoder beside an encoder of images, and M-RoPE in the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from family import DECODER, QUESTION, RATE, Family
from judge import Judge
from random_weights import save, scatter
from small_tokenizer import character_tokenizer
from whisper_encoders import WHISPER, whisper_frames

TOKENS = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
CLIP = "<|audio_bos|><|AUDIO|><|audio_eos|>"


def config(tokenizer: Any) -> Any:
    """Of the whole model; the talker keeps its defaults, and no weights are written for it."""
    token = {name: tokenizer.convert_tokens_to_ids(text) for name, text in TOKENS.items()}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    thinker = {
        "audio_config": {**WHISPER, "n_window": 20, "output_dim": 64},
        "vision_config": {
            "depth": 1,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "out_hidden_size": 64,
        },
        "text_config": {**DECODER, "rope_scaling": rope, "rope_parameters": rope},
        "audio_token_index": token["audio_token"],
        "image_token_index": token["image_token"],
        "video_token_index": token["video_token"],
        "audio_start_token_id": token["audio_bos_token"],
        "audio_end_token_id": token["audio_eos_token"],
        "vision_start_token_id": token["vision_bos_token"],
        "vision_end_token_id": token["vision_eos_token"],
        "pad_token_id": 0,
    }
    whole = transformers.Qwen2_5OmniConfig(thinker_config=thinker, enable_audio_output=False)
    whole.architectures = ["Qwen2_5OmniModel"]
    return whole


class Qwen25Omni(Family):
    def write(self, folder: Path) -> None:
        tokenizer = character_tokenizer(*TOKENS.values(), extra_special_tokens=TOKENS)
        processor = transformers.Qwen2_5OmniProcessor(
            transformers.Qwen2VLImageProcessor(),
            transformers.Qwen2VLVideoProcessor(),
            whisper_frames(),
            tokenizer,
        )
        whole = config(tokenizer)
        thinker = transformers.Qwen2_5OmniThinkerForConditionalGeneration(whole.thinker_config)
        save(scatter(thinker), processor, folder, {"^": "thinker."})
        whole.save_pretrained(folder)

    def prompt(self, clips: Sequence[np.ndarray]) -> str:
        return CLIP * len(clips) + QUESTION

    def judge(self, folder: Path) -> Judge:
        thinker = transformers.Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
            folder,
            config=transformers.Qwen2_5OmniConfig.from_pretrained(folder).thinker_config,
            key_mapping={r"^thinker\.": ""},
            dtype=torch.float32,
        ).eval()
        processor = transformers.Qwen2_5OmniProcessor.from_pretrained(folder)
        tokenizer = processor.tokenizer

        def encode(audio: np.ndarray) -> torch.Tensor:
            inputs = processor(text=CLIP, audio=audio, sampling_rate=RATE, return_tensors="pt")
            rows = thinker.get_audio_features(inputs["input_features"], inputs["feature_attention_mask"])
            return rows.last_hidden_state

        def ids(clips: int) -> list[int]:
            return tokenizer(CLIP * clips + QUESTION)["input_ids"]

        return Judge(thinker, ids, tokenizer.convert_tokens_to_ids("<|AUDIO|>"), encode)


FAMILIES = {
    "Qwen2.5-Omni": Qwen25Omni(
        architecture="Qwen2_5OmniModel",
        options={"limit_mm_per_prompt": {"audio": 2, "image": 0, "video": 0}},
    ),
}
