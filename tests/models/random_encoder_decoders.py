"""Random encoder-decoder models, small enough to run hundreds of times, and pooled memory made by hand.

A mean that stands for n tokens and weighs as n tokens is the same as n copies of it, each weighing one. So what
``attention="proportional"`` gives a model that knows nothing of pooling gives too, whose encoder repeats each mean; and
``"plain"`` one whose encoder returns each mean once, for one row at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from affinity_pool import reference
from affinity_pool.models import Site
from affinity_pool.models.families import family_of

FRAMES = 120  # 60 encoder tokens, 1.2 s
BINS = 8

SITE, KEPT = Site("memory", threshold=0.8, window=1), Site("memory", keep=0.4)

# Tokens of the random Whisper: text, then as the published ones have it.
EOS, SOT, EN, DE, TRANSCRIBE, TRANSLATE, PREV, NO_TIMESTAMPS = range(40, 48)
VOCABULARY = NO_TIMESTAMPS + 1 + FRAMES // 2 + 1
SMALL = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}
ENDS = {"decoder_start_token_id": SOT, "bos_token_id": EOS, "eos_token_id": EOS, "pad_token_id": EOS}


def _whisper() -> Any:
    config = transformers.WhisperConfig(
        **SMALL,
        **ENDS,
        vocab_size=VOCABULARY,
        num_mel_bins=BINS,
        max_source_positions=FRAMES // 2,
        max_target_positions=64,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config = transformers.GenerationConfig(
        **ENDS,
        max_length=40,
        is_multilingual=True,
        lang_to_id={"<|en|>": EN, "<|de|>": DE},
        task_to_id={"transcribe": TRANSCRIBE, "translate": TRANSLATE},
        no_timestamps_token_id=NO_TIMESTAMPS,
        prev_sot_token_id=PREV,
        return_timestamps=False,
        max_initial_timestamp_index=30,
        alignment_heads=[[0, 1], [1, 0]],
    )
    return model


def _moonshine() -> Any:
    config = transformers.MoonshineConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        encoder_num_hidden_layers=1,
        decoder_num_hidden_layers=2,
        encoder_num_attention_heads=2,
        decoder_num_attention_heads=2,
        max_position_embeddings=64,
        **ENDS,
    )
    return transformers.MoonshineForConditionalGeneration(config)


def _speech_to_text() -> Any:
    config = transformers.Speech2TextConfig(
        **SMALL,
        **ENDS,
        vocab_size=VOCABULARY,
        max_source_positions=FRAMES,
        max_target_positions=64,
        input_feat_per_channel=BINS,
        conv_channels=16,
    )
    return transformers.Speech2TextForConditionalGeneration(config)


def _seamless() -> Any:
    config = transformers.SeamlessM4Tv2Config(
        **{name: value for name, value in SMALL.items() if name != "d_model"},
        **ENDS,
        hidden_size=32,
        vocab_size=VOCABULARY,
        speech_encoder_layers=1,
        speech_encoder_attention_heads=2,
        speech_encoder_intermediate_size=48,
        feature_projection_input_dim=BINS,
        num_adapter_layers=1,
        max_position_embeddings=64,
        t2u_encoder_layers=1,
        t2u_decoder_layers=1,
    )
    model = transformers.SeamlessM4Tv2ForSpeechToText(config)
    model.generation_config.text_decoder_lang_to_code_id = {"eng": EN}
    return model


_MADE: dict[str, Callable[[], Any]] = {
    "whisper": _whisper,
    "moonshine": _moonshine,
    "speech_to_text": _speech_to_text,
    "seamless_m4t_v2": _seamless,
}
FAMILIES = tuple(_MADE)
# Thresholds at which some of every family's random memory merges, and not all of it.
_THRESHOLD = {"whisper": 0.85, "moonshine": 0.7, "speech_to_text": 0.98, "seamless_m4t_v2": 0.55}

BOTH = pytest.mark.parametrize("attention", ["plain", "proportional"])
EVERY = pytest.mark.parametrize("family", FAMILIES)


def some(family: str) -> Site:
    """That merges some of a family's random memory."""
    return Site("memory", threshold=_THRESHOLD[family], window=1)


@functools.cache
@torch.inference_mode(False)
def random_model(family: str = "whisper", attention: str | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """One model for each attention implementation (None: the family's), of the same weights; tests leave it alone."""
    torch.manual_seed(0)
    model = _MADE[family]().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "position" not in name:
                weight.normal_(std=1.3 * weight[0].numel() ** -0.5)  # else nothing depends on the audio
    if attention is not None:
        model.set_attn_implementation(attention)
    return model.to(dtype)


def features(seed: int, frames: int = FRAMES, bins: int = BINS) -> Tensor:
    """``[bins, frames]`` log-mel features that stay nearly as they are for some frames, then change."""
    generator = torch.Generator().manual_seed(seed)
    lasting = torch.randint(4, 24, (frames // 4,), generator=generator)
    plateaus = torch.randn(bins, len(lasting), generator=generator).repeat_interleave(lasting, 1)[:, :frames]
    return plateaus + 0.05 * torch.randn(bins, frames, generator=generator)


def speech(family: str = "whisper") -> dict[str, Tensor]:
    """Keyword arguments for three rows; but for Whisper, which always hears a whole window, of different lengths."""
    rows = torch.stack([features(seed) for seed in range(3)])
    if family == "whisper":
        return {"input_features": rows}
    if family == "moonshine":
        waves = rows.flatten(1).repeat_interleave(12, 1)  # 0.7 s
        return {"input_values": waves, "attention_mask": _first([waves.shape[1], 8000, 5000], waves.shape[1])}
    return {"input_features": rows.mT.contiguous(), "attention_mask": _first([FRAMES, 72, 40], FRAMES)}


def _first(lengths: list[int], width: int) -> Tensor:
    return (torch.arange(width) < torch.tensor(lengths)[:, None]).long()


def row(inputs: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    """One of them alone, still padded."""
    return {name: value[index : index + 1] for name, value in inputs.items()}


PROMPT = torch.tensor([[SOT, EN, TRANSCRIBE, 5, 6]])


def logits(model: Any, inputs: dict[str, Tensor], tokens: Tensor = PROMPT, **options: Any) -> Tensor:
    """Of every token of the same answer in each row."""
    rows = next(iter(inputs.values())).shape[0]
    return model(**inputs, decoder_input_ids=tokens.expand(rows, -1), **options).logits


@contextmanager
def pooled_by_hand(model: Any, site: Site, attention: str) -> Iterator[None]:
    """An unpatched model whose encoder returns pooled memory, for attention="plain" of one row without padding."""
    encoder = family_of(model).encoder(model)
    assert encoder is not None
    forward = encoder.forward

    def pooled(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        hidden = output.last_hidden_state
        rows = []
        for one in hidden:
            if site.keep is None:
                found = reference.pool(one, threshold=site.threshold, window=site.window)
            else:
                found = reference.pool_to(one, site.keep)
            proportional = attention == "proportional"
            rows.append(found.values.repeat_interleave(found.counts, 0) if proportional else found.values)
        output.last_hidden_state = torch.stack(rows)
        return output

    encoder.forward = pooled
    try:
        yield
    finally:
        del encoder.forward
