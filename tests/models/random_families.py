"""A random model of each family, a few thousand parameters large, and three prompts that it takes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from random_speech import AUDIO, DECODER, LAYERS, MEL_FRAMES, PAD, prompt

from affinity_pool.models import Site, patch
from affinity_pool.models.settings import Positions

Row = dict[str, torch.Tensor]

WHISPER = {"num_mel_bins": 8, "max_source_positions": MEL_FRAMES // 2}
SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
STACKED = SMALL | {"intermediate_size": 128}  # four frames of the encoder side by side
DIMS = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
QWEN2 = {"model_type": "qwen2", **DECODER}


def voxtral() -> Any:
    config = transformers.VoxtralConfig(
        audio_config=STACKED | WHISPER,
        text_config={"model_type": "llama", "head_dim": 16, **DECODER},
        audio_token_id=AUDIO,
    )
    return transformers.VoxtralForConditionalGeneration(config)


def audioflamingo3() -> Any:
    config = transformers.AudioFlamingo3Config(audio_config=SMALL | WHISPER, text_config=QWEN2, audio_token_id=AUDIO)
    return transformers.AudioFlamingo3ForConditionalGeneration(config)


def musicflamingo() -> Any:
    config = transformers.MusicFlamingoConfig(
        audio_config={"model_type": "audioflamingo3_encoder", **SMALL, **WHISPER},
        text_config=QWEN2,
        audio_token_id=AUDIO,
        audio_bos_token_id=6,
        audio_eos_token_id=7,
        rope_parameters={"rope_type": "default", "rope_theta": 1200, "partial_rotary_factor": 0.5},
    )
    return transformers.MusicFlamingoForConditionalGeneration(config)


def glmasr() -> Any:
    config = transformers.GlmAsrConfig(
        audio_config={"model_type": "glmasr_encoder", "num_key_value_heads": 2, **STACKED, "num_mel_bins": 8},
        text_config={"model_type": "llama", **DECODER},
        audio_token_id=AUDIO,
    )
    return transformers.GlmAsrForConditionalGeneration(config)


def qwen3_asr() -> Any:
    config = transformers.Qwen3ASRConfig(
        audio_config={
            "model_type": "qwen3_asr_encoder",
            "num_mel_bins": 8,
            "output_dim": DECODER["hidden_size"],
            "downsample_hidden_size": 8,
            **DIMS,
        },
        text_config={"model_type": "qwen3", "head_dim": 16, **DECODER},
        audio_token_id=AUDIO,
    )
    return transformers.Qwen3ASRForConditionalGeneration(config)


GRANITE = {
    "input_dim": 16,
    "num_layers": 2,
    "hidden_dim": 32,
    "feedforward_mult": 1,
    "num_heads": 2,
    "dim_head": 16,
    "output_dim": 8,
    "context_size": 20,
    "max_pos_emb": 20,
    "conv_kernel_size": 3,
}
QFORMER = {
    "model_type": "blip_2_qformer",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "encoder_hidden_size": 32,
}


def granite_speech(kind: str = "GraniteSpeech", encoder: Any = GRANITE, qformer: Any = QFORMER) -> Any:
    config = getattr(transformers, f"{kind}Config")(
        text_config={
            "model_type": "granite",
            **DECODER,
            "embedding_multiplier": 2.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.2,
            "logits_scaling": 0.25,
        },
        encoder_config=encoder,
        projector_config=qformer,
        audio_token_index=AUDIO,
        has_lora_adapter=False,
        downsample_rate=2,
        window_size=4,
        tie_word_embeddings=False,
    )
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config)


def granite_speech_plus() -> Any:
    encoder = GRANITE | {"model_type": "granite_speech_plus_encoder", "cat_hidden_layers": [1]}
    return granite_speech("GraniteSpeechPlus", encoder, QFORMER | {"encoder_hidden_size": 64})


def qwen2_5_omni() -> Any:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    config = transformers.Qwen2_5OmniThinkerConfig(
        audio_config={"output_dim": DECODER["hidden_size"], "n_window": 10, **DIMS, **WHISPER},
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 1, "out_hidden_size": 64},
        text_config={**DECODER, "rope_scaling": rope, "rope_parameters": rope},
        audio_token_index=AUDIO,
        audio_token_id=AUDIO,
        vision_start_token_id=6,
        audio_start_token_id=7,
        pad_token_id=PAD,
    )
    return transformers.Qwen2_5OmniThinkerForConditionalGeneration(config)


def phi4_multimodal() -> Any:
    config = transformers.Phi4MultimodalConfig(
        **DECODER,
        original_max_position_embeddings=512,
        sliding_window=512,  # as in the published checkpoint, wider than the model can see
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
        vision_config={
            **SMALL,
            "image_size": 28,
            "crop_size": 28,
            "image_token_id": 6,
        },
        audio_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_blocks": 1,
            "num_attention_heads": 2,
            "ext_pw_out_channel": 32,
            "depthwise_separable_out_channel": 32,
            "depthwise_seperable_out_channel": 32,  # what transformers 4.55 calls it
            "nemo_conv_channels": 4,
            "input_size": 8,
            "bias_max_distance": 20,
            "audio_token_id": AUDIO,
        },
    )
    return transformers.Phi4MultimodalForCausalLM(config)


# What the families call their audio. Clips of one prompt set are equally long before the encoder: some encoders let
# padding into the embeddings, so that the model itself would not be batch-invariant.


def mel(*parts: int | str, mask: str, frames_per_token: int, seed: int) -> Row:
    """Mel frames and a mask of them."""
    row = prompt(*parts, seed=seed)
    tokens = torch.tensor([part for part in parts if isinstance(part, int)])
    del row["feature_attention_mask"]
    return row | {mask: (torch.arange(MEL_FRAMES) < frames_per_token * tokens[:, None]).long()}


def chunks_of_frames(*parts: int | str, seed: int) -> Row:
    """Mel frames and a mask of them, in whole chunks of 100, each of which makes 13 tokens."""
    row = mel(*parts, mask="input_features_mask", frames_per_token=8, seed=seed)
    tokens = torch.tensor([part for part in parts if isinstance(part, int)])
    frames = 100 * (tokens // 13) + 8 * (tokens % 13)
    row["input_features"] = torch.nn.functional.pad(row["input_features"], (0, 200 - MEL_FRAMES))
    return row | {"input_features_mask": (torch.arange(200) < frames[:, None]).long()}


def whole_window(*parts: int | str, seed: int) -> Row:
    """Every clip fills the encoder's window."""
    row = prompt(*parts, seed=seed)
    del row["feature_attention_mask"]
    return row


def pairs_of_frames(*parts: int | str, seed: int) -> Row:
    """Mel frames by twos, and a mask of the embeddings."""
    row = whole_window(*parts, seed=seed)
    tokens = torch.tensor([part for part in parts if isinstance(part, int)])
    row["input_features"] = row["input_features"].transpose(1, 2).reshape(len(tokens), -1, 16)
    return row | {"input_features_mask": torch.arange(MEL_FRAMES // 4) < tokens[:, None]}


def embed_sizes(*parts: int | str, seed: int) -> Row:
    """Mel frames in time's order, and how many embeddings of each clip count."""
    row = whole_window(*parts, seed=seed)
    features = row.pop("input_features").transpose(1, 2)
    sizes = torch.tensor([part for part in parts if isinstance(part, int)])
    return row | {"audio_input_features": features, "audio_embed_sizes": sizes}


@dataclass(frozen=True)
class Case:
    build: Callable[[], Any]
    row: Callable[..., Row]
    clips: tuple[int, int, int]
    """Audio tokens of the three prompts."""


def masked(mask: str, frames_per_token: int) -> Callable[..., Row]:
    return functools.partial(mel, mask=mask, frames_per_token=frames_per_token)


CASES = {
    "VoxtralForConditionalGeneration": Case(voxtral, whole_window, (15, 15, 15)),
    "AudioFlamingo3ForConditionalGeneration": Case(audioflamingo3, masked("input_features_mask", 4), (30, 17, 8)),
    "MusicFlamingoForConditionalGeneration": Case(musicflamingo, masked("input_features_mask", 4), (30, 17, 8)),
    "GlmAsrForConditionalGeneration": Case(glmasr, masked("input_features_mask", 8), (15, 12, 7)),
    "Qwen3ASRForConditionalGeneration": Case(qwen3_asr, chunks_of_frames, (16, 13, 10)),
    "GraniteSpeechForConditionalGeneration": Case(granite_speech, pairs_of_frames, (30, 17, 8)),
    "GraniteSpeechPlusForConditionalGeneration": Case(granite_speech_plus, pairs_of_frames, (30, 17, 8)),
    "Qwen2_5OmniThinkerForConditionalGeneration": Case(qwen2_5_omni, masked("feature_attention_mask", 4), (30, 17, 8)),
    "Phi4MultimodalForCausalLM": Case(phi4_multimodal, embed_sizes, (15, 12, 7)),
}


@functools.cache
@torch.inference_mode(False)
def random_model(name: str) -> Any:
    """The model of this class, or a skipped test where this version of transformers lacks it."""
    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    torch.manual_seed(0)
    model = CASES[name].build().eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            text = ("language_model", "lm_head", "model.layers", "model.embed_tokens.", "model.norm")
            if weight.dim() > 1 and not key.startswith("visual") and not any(part in key for part in text):
                weight.normal_(std=0.3)  # else all audio embeddings are nearly the same
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None
    model.generation_config.suppress_tokens = [AUDIO]
    return model


def random_rows(name: str) -> list[Row]:
    """Three prompts of different lengths."""
    first, second, third = CASES[name].clips
    row = CASES[name].row
    return [row("abc", first, "defg", seed=1), row("abcd", second, "efg", seed=2), row("ab", third, "cde", seed=3)]


def sites_that_merge_half(model: Any, inputs: Row, positions: Positions) -> list[Site]:
    """Random encoders differ in how alike neighbours are: take the highest thresholds that merge a good part."""
    sites: list[Site] = []
    for layer in (0, LAYERS // 2):
        for threshold in torch.linspace(0.999, -1, 60).tolist():
            with patch(model, [*sites, Site(layer, threshold, 2)], positions=positions) as handle:
                model(**inputs)
                if handle.stats.sites[-1].audio_kept < 0.75:
                    break
        sites.append(Site(layer, threshold, 2))
    return sites
