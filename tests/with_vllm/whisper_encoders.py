"""Families that hear through an encoder like Whisper's: windows of mel frames, of which a clip may fill a part."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from family import DECODER, RATE, TransformersFamily
from judge import Judge
from small_tokenizer import character_tokenizer

MEL_BINS = 80
WHISPER = {
    "num_mel_bins": MEL_BINS,
    "max_source_positions": 1500,  # 30 s, which vLLM insists on
    "d_model": 64,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 128,
}
LONGEST = 60.0
"""Seconds of a clip in families that take several windows: vLLM tries the longest when it starts."""


def whisper_frames() -> Any:
    return transformers.WhisperFeatureExtractor(feature_size=MEL_BINS)


def qwen2_audio() -> tuple[Any, Any]:
    tokenizer = character_tokenizer("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
    config = transformers.Qwen2AudioConfig(
        audio_config=WHISPER,
        text_config={"model_type": "qwen2", **DECODER},
        audio_token_id=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    processor = transformers.Qwen2AudioProcessor(whisper_frames(), tokenizer)
    return transformers.Qwen2AudioForConditionalGeneration(config), processor


def qwen2_audio_rows(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What the projector puts out: this model has no method that returns it."""
    (projector,) = (part for name, part in model.named_modules() if name.endswith("multi_modal_projector"))
    seen: list[torch.Tensor] = []
    hook = projector.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    model(**inputs)
    hook.remove()
    return seen[0][: int((inputs["input_ids"] == model.config.audio_token_id).sum())]


def audio_flamingo_3() -> tuple[Any, Any]:
    tokenizer = character_tokenizer("<sound>")
    config = transformers.AudioFlamingo3Config(
        audio_config={
            "num_mel_bins": MEL_BINS,
            "max_source_positions": 1500,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
        text_config={"model_type": "qwen2", **DECODER},
        audio_token_id=tokenizer.convert_tokens_to_ids("<sound>"),
    )
    processor = transformers.AudioFlamingo3Processor(whisper_frames(), tokenizer, max_audio_len=LONGEST)
    return transformers.AudioFlamingo3ForConditionalGeneration(config), processor


def qwen3_asr() -> tuple[Any, Any]:
    audio = {
        "audio_token": "<|audio_pad|>",
        "audio_bos_token": "<|audio_start|>",
        "audio_eos_token": "<|audio_end|>",
    }
    tokenizer = character_tokenizer(*audio.values(), extra_special_tokens=audio)
    config = transformers.Qwen3ASRConfig(
        audio_config={**WHISPER, "model_type": "qwen3_asr_encoder", "output_dim": 64, "downsample_hidden_size": 16},
        text_config={"model_type": "qwen3", "head_dim": 32, **DECODER},
        audio_token_id=tokenizer.convert_tokens_to_ids("<|audio_pad|>"),
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=2,
    )
    frames = transformers.models.qwen3_asr.Qwen3ASRFeatureExtractor(feature_size=MEL_BINS)
    return transformers.Qwen3ASRForConditionalGeneration(config), transformers.Qwen3ASRProcessor(frames, tokenizer)


class Qwen3Asr(TransformersFamily):
    """Up to 0.31, vLLM makes the mel frames in a way of its own: Whisper's, of clips filled up to whole frames."""

    def judge(self, folder: Path) -> Judge:
        judge, frames = super().judge(folder), whisper_frames()
        (vllm,) = importlib.util.find_spec("vllm").submodule_search_locations
        if not Path(vllm, "transformers_utils", "processors", "qwen3_asr.py").exists():
            return judge

        def encode(audio: np.ndarray) -> torch.Tensor:
            whole = np.pad(audio, (0, -len(audio) % frames.hop_length))
            inputs = frames([whole], sampling_rate=RATE, padding=True, truncation=False, return_tensors="pt")
            mel = inputs["input_features"]
            chunks = torch.nn.functional.pad(mel, (0, -mel.shape[-1] % 100))
            mask = torch.arange(chunks.shape[-1])[None] < mel.shape[-1]
            return judge.model.get_audio_features(chunks, mask.long()).pooler_output

        return dataclasses.replace(judge, encode=encode)


def glm_asr() -> tuple[Any, Any]:
    tokenizer = character_tokenizer("<|begin_of_audio|>", "<|end_of_audio|>")
    config = transformers.GlmAsrConfig(
        audio_config={
            "model_type": "glmasr_encoder",
            "num_mel_bins": MEL_BINS,
            "hidden_size": 64,
            "intermediate_size": 256,  # four frames side by side
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
        },
        text_config={"model_type": "llama", **DECODER},
        audio_token_id=tokenizer.convert_tokens_to_ids("<|pad|>"),
        tie_word_embeddings=False,
    )
    processor = transformers.GlmAsrProcessor(whisper_frames(), tokenizer, max_audio_len=LONGEST)
    return transformers.GlmAsrForConditionalGeneration(config), processor


FAMILIES = {
    "Qwen2-Audio": TransformersFamily(
        architecture="Qwen2AudioForConditionalGeneration",
        build=qwen2_audio,
        clip="<|audio_bos|><|AUDIO|><|audio_eos|>",
        placeholder="<|AUDIO|>",
        rows=qwen2_audio_rows,
    ),
    "Audio Flamingo 3": TransformersFamily(
        architecture="AudioFlamingo3ForConditionalGeneration",
        build=audio_flamingo_3,
        clip="<sound>",
        placeholder="<sound>",
        clips=1,  # vLLM's limit
        seconds=(0.2, LONGEST),
    ),
    "Qwen3-ASR": Qwen3Asr(
        architecture="Qwen3ASRForConditionalGeneration",
        build=qwen3_asr,
        names={r"^lm_head": "language_model.lm_head"},  # published ones share their embeddings and have none
        clip="<|audio_start|><|audio_pad|><|audio_end|>",
        placeholder="<|audio_pad|>",
        seconds=(1.0, 30.0),  # a shorter one has other rows in vLLM alone than beside a longer one
    ),
    "GLM-ASR": TransformersFamily(
        architecture="GlmAsrForConditionalGeneration",
        build=glm_asr,
        clip="<|begin_of_audio|><|pad|><|end_of_audio|>",
        placeholder="<|pad|>",
        seconds=(0.2, LONGEST),
    ),
}
