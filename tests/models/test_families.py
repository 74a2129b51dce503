"""Other families need an entry in ``FAMILIES`` and nothing else: small random models of each hold the main claims."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import transformers
from random_speech import AUDIO, DECODER, MEL_FRAMES, PAD, batch, prompt, tokens

from affinity_pool.models import FAMILIES, Family, Site, patch

ENCODER = {"num_mel_bins": 8, "max_source_positions": MEL_FRAMES // 2}


def voxtral() -> Any:
    encoder = dict(hidden_size=32, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, **ENCODER)
    text = dict(model_type="llama", head_dim=16, **DECODER)
    config = transformers.VoxtralConfig(audio_config=encoder, text_config=text, audio_token_id=AUDIO)
    return transformers.VoxtralForConditionalGeneration(config)


def audioflamingo3() -> Any:
    encoder = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, **ENCODER)
    text = dict(model_type="qwen2", **DECODER)
    config = transformers.AudioFlamingo3Config(audio_config=encoder, text_config=text, audio_token_id=AUDIO)
    return transformers.AudioFlamingo3ForConditionalGeneration(config)


MODELS = {"VoxtralForConditionalGeneration": voxtral, "AudioFlamingo3ForConditionalGeneration": audioflamingo3}


@functools.cache
@torch.inference_mode(False)
def random_model(name: str) -> Any:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.dim() > 1 and "language_model" not in key and "lm_head" not in key:
                weight.normal_(std=0.3)  # else all audio embeddings are nearly the same
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None
    model.generation_config.suppress_tokens = [AUDIO]
    return model


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple[Any, list[dict[str, torch.Tensor]]]:
    """A model and three rows it takes; Voxtral's clips all fill its window of 60 frames, 15 tokens."""
    if not hasattr(transformers, request.param):
        pytest.skip(f"transformers {transformers.__version__} has no {request.param}")
    if request.param.startswith("Voxtral"):
        rows = [prompt("abc", 15, "defg", seed=1), prompt("a", 15, "cdefghijk", seed=2), prompt("ab", 15, "cd", seed=3)]
        for row in rows:
            del row["feature_attention_mask"]
    else:
        rows = [prompt("abc", 30, "defg", seed=1), prompt("abcd", 17, "efg", seed=2), prompt("ab", 8, "cde", seed=3)]
        for row in rows:
            row["input_features_mask"] = row.pop("feature_attention_mask")
    return random_model(request.param), rows


def sites_that_merge_half(model: Any, inputs: dict[str, torch.Tensor]) -> list[Site]:
    """Random encoders differ in how alike neighbours are: take the highest thresholds that halve the audio."""
    sites: list[Site] = []
    for layer in (0, 2):
        for threshold in torch.linspace(0.999, -1, 60).tolist():
            with patch(model, [*sites, Site(layer, threshold, 2)]) as handle:
                model(**inputs)
                if handle.stats.sites[-1].audio_kept < 0.75:
                    break
        sites.append(Site(layer, threshold, 2))
    return sites


def test_thresholds_above_one_change_no_bit(case):
    model, rows = case
    inputs = batch(rows)
    logits, generated = model(**inputs).logits, tokens(model, inputs)
    with patch(model, [Site(0, 1.5), Site(2, 1.5)]):
        assert torch.equal(model(**inputs).logits, logits)
        assert torch.equal(tokens(model, inputs), generated)


@pytest.mark.parametrize("positions", ["keep", "compact"])
def test_batch_equals_single_and_cache_equals_no_cache(case, positions):
    model, rows = case
    inputs = batch(rows)
    for row, alone in zip(tokens(model, inputs), rows, strict=True):
        if not torch.equal(row, tokens(model, alone)[0]):
            pytest.skip(
                f"{type(model).__name__} of transformers {transformers.__version__} is not batch-invariant itself"
            )
    sites = sites_that_merge_half(model, inputs)
    with patch(model, sites, positions=positions) as handle:
        together = tokens(model, inputs)
        assert all(site.audio_kept < 0.75 for site in handle.stats.sites)
        assert torch.equal(together, tokens(model, inputs, use_cache=False))
        for row, alone in zip(together, rows, strict=True):
            assert torch.equal(row, tokens(model, alone)[0])


def test_a_family_can_be_added_from_outside(model, speech, monkeypatch):
    def decoder(model: Any) -> Any:
        return next(module for module in model.modules() if type(module).__name__ == "Qwen2Model")

    monkeypatch.setitem(FAMILIES, "qwen2_audio", Family("input_features", decoder, lambda config: AUDIO))
    with patch(model, [Site(0, 0.7, 1)]) as handle:
        model(**speech)
        assert handle.stats.kv_bytes_saved > 0
