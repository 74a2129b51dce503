"""A random Qwen2-Audio model small enough to run hundreds of times, and prompts whose audio has groups to merge."""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers

from affinity_pool.models import Site
from affinity_pool.models.families import language_model

AUDIO, PAD, VOCABULARY = 5, 0, 120
MEL_FRAMES = 120  # 30 audio tokens at most
LAYERS = 4

# Thresholds at which a good part of the test audio merges, and not all of it.
INPUT = Site(0, threshold=0.7, window=1)
DEEP = Site(2, threshold=0.6, window=3)
DUAL = [INPUT, DEEP]
# The same places, with shares to keep.
INPUT_KEPT, DEEP_KEPT = Site(0, keep=0.6), Site(2, keep=0.45)
KEPT = [INPUT_KEPT, DEEP_KEPT]
SITES = {
    "input": [INPUT],
    "deep": [DEEP],
    "dual": DUAL,
    "input-kept": [INPUT_KEPT],
    "deep-kept": [DEEP_KEPT],
    "kept": KEPT,
    "input-kept-deep-not": [INPUT_KEPT, DEEP],
    "deep-kept-input-not": [INPUT, DEEP_KEPT],
}
# Sites that draw their number in training.
RANGES = [Site(0, (0.3, 1.0), window=1), Site(2, keep=(0.3, 0.9))]
# Sites at which nothing merges.
IDLE = {
    "threshold": [Site(0, 1.5, 1), Site(2, 1.5, 3)],
    "keep": [Site(0, keep=1.0), Site(2, keep=1.0)],
    "both": [Site(0, 1.5, 1), Site(2, keep=1.0)],
}
CLOSE = {"rtol": 1e-3, "atol": 1e-3}  # logits are about 10 here; equal but for the order of float32 sums

DECODER = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": PAD,
    "bos_token_id": 2,
    "eos_token_id": 1,
}


@functools.cache
@torch.inference_mode(False)
def speech_model(attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> Any:
    """One model for each attention implementation, with the same weights; tests leave it as they found it."""
    config = transformers.Qwen2AudioConfig(
        audio_config={
            "model_type": "qwen2_audio_encoder",
            "d_model": 32,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "num_mel_bins": 8,
            "max_source_positions": MEL_FRAMES // 2,
        },
        text_config={"model_type": "qwen2", **DECODER},
        audio_token_index=AUDIO,
        audio_token_id=AUDIO,
    )
    config._attn_implementation = attention
    torch.manual_seed(0)
    model = transformers.Qwen2AudioForConditionalGeneration(config).eval().to(dtype)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "language_model" not in name and "lm_head" not in name:
                weight.mul_(3.0)  # else all audio embeddings are nearly the same
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None
    model.generation_config.suppress_tokens = [AUDIO]  # an answer that holds one cannot be prefilled again
    return model


def prompt(*parts: int | str, seed: int = 0) -> dict[str, torch.Tensor]:
    """A prompt of one row: an int is a clip of so many audio tokens, a string so many text tokens as it has letters."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[torch.Tensor] = []
    features, masks = [], []
    for part in parts:
        if isinstance(part, str):
            ids.append(torch.randint(10, VOCABULARY, (len(part),), generator=generator))
            continue
        ids.append(torch.full((part,), AUDIO))
        plateaus = torch.randn(8, MEL_FRAMES // 16 + 1, generator=generator).repeat_interleave(16, 1)[:, :MEL_FRAMES]
        features.append(plateaus + 0.05 * torch.randn(8, MEL_FRAMES, generator=generator))
        masks.append((torch.arange(MEL_FRAMES) < 4 * part).long())
    row = torch.cat(ids)[None]
    inputs = {"input_ids": row, "attention_mask": torch.ones_like(row)}
    if features:
        inputs |= {"input_features": torch.stack(features), "feature_attention_mask": torch.stack(masks)}
    return inputs


def batch(rows: list[dict[str, torch.Tensor]], side: str = "left") -> dict[str, torch.Tensor]:
    """Pad prompts into one batch."""
    width = max(row["input_ids"].shape[1] for row in rows)

    def pad(x: torch.Tensor) -> torch.Tensor:
        missing = width - x.shape[1]
        return torch.nn.functional.pad(x, (missing, 0) if side == "left" else (0, missing), value=PAD)

    stacked = {key: torch.cat([pad(row[key]) for row in rows]) for key in ("input_ids", "attention_mask")}
    for key in {key: None for row in rows for key in row if key not in stacked}:
        stacked[key] = torch.cat([row[key] for row in rows if key in row])  # one entry for each clip
    return stacked


def labelled(rows: list[dict[str, torch.Tensor]], side: str = "right") -> dict[str, torch.Tensor]:
    """A batch whose labels are the text behind each row's first clip."""
    inputs = batch(rows, side)
    ids = inputs["input_ids"]
    heard = (ids == AUDIO).cumsum(1) > 0
    return inputs | {"labels": ids.masked_fill(~heard | (ids == AUDIO) | (ids == PAD), -100)}


SPEECH = [prompt("abc", 30, "defghi", seed=1), prompt("abcde", 17, "fghi", seed=2), prompt("ab", 8, "cdefghi", seed=3)]


def tokens(model: Any, inputs: dict[str, torch.Tensor], new: int = 6, **options: Any) -> torch.Tensor:
    """Greedy unless told otherwise: the new tokens alone."""
    options = {"do_sample": False} | options
    return model.generate(**inputs, max_new_tokens=new, **options)[:, inputs["input_ids"].shape[1] :]


def steps(model: Any, inputs: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
    """Logits ``[B, steps, vocabulary]`` of a greedy generation: they show a wrong mask or phase before tokens do."""
    out = model.generate(
        **inputs, max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True, **options
    )
    return torch.stack(out.logits, 1)


def qwen2(model: Any) -> Any:
    """The decoder, wherever this version of transformers keeps it."""
    return next(module for module in model.modules() if type(module).__name__ == "Qwen2Model")


def embedded(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same prompts as embeddings, as someone holds them who runs the encoder once."""
    seen: list[torch.Tensor] = []
    hook = language_model(model).register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    model(**inputs)
    hook.remove()
    return {"inputs_embeds": seen[0], "attention_mask": inputs["attention_mask"]}
