"""The FLOPs calculator against torch's own counter and against the figures of the paper."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from affinity_pool.study.efficiency.flops import (
    decoder_config,
    knows_encoder,
    prefill_flops,
    relative_prefill_flops,
    tokens_per_layer,
)

QWEN2_AUDIO = SimpleNamespace(
    num_hidden_layers=32,
    hidden_size=4096,
    num_attention_heads=32,
    num_key_value_heads=32,
    intermediate_size=11008,
    vocab_size=156032,
)
PAPER_INPUT = {0: 0.7864}
PAPER_DUAL = {0: 0.7864, 29: 0.1491}


@pytest.mark.parametrize("pooled", [False, True])
def test_agrees_with_torch_counter_to_the_last_operation(folder: Path, pooled: bool) -> None:
    """Encoder, grouped-query decoder and head of a whole model, with every layer at one length or pooled in between."""
    from transformers import Qwen2AudioForConditionalGeneration

    from affinity_pool import Site, patch

    # eager: torch 2.13 does not count the CPU's fused attention
    model = Qwen2AudioForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
    ids = torch.tensor([[6, 4, *[3] * 40, 5, 7, 2, 6]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "input_features": torch.randn(1, 16, 200, generator=torch.Generator().manual_seed(0)),
        "feature_attention_mask": (torch.arange(200) < 159)[None].long(),
    }
    tokens = [ids.shape[1]] * 4
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if pooled:
            with patch(model, [Site(2, threshold=-1.0)]) as handle:
                logits = model(**inputs).logits
            tokens = tokens_per_layer(4, ids.shape[1], {2: handle.stats.sites[0].tokens_after[0]})
            assert tokens[2] < tokens[1]
        else:
            logits = model(**inputs).logits
    counted = prefill_flops(model.config, tokens, logits=logits.shape[1], mel_frames=200)
    assert counted.total == counter.get_total_flops()


def test_gives_the_papers_figures() -> None:
    """Both to 0.01 point at one assumption: 235 audio tokens (9.4 s at 25 a second), no text, last token's logits."""
    assert 100 * relative_prefill_flops(QWEN2_AUDIO, 0, 235, PAPER_INPUT) == pytest.approx(78.49, abs=0.01)
    assert 100 * relative_prefill_flops(QWEN2_AUDIO, 0, 235, PAPER_DUAL) == pytest.approx(72.52, abs=0.01)


@pytest.mark.parametrize(("text_tokens", "points"), [(0, 0.4), (20, 2.4)])
@pytest.mark.parametrize("audio_tokens", [220, 250, 500, 750])
def test_stays_near_the_papers_figures_at_other_lengths(audio_tokens: int, text_tokens: int, points: float) -> None:
    """From 9 to 30 s. The figures fit a prompt without text: 20 tokens of a chat template raise them by up to 2.3."""
    at_input = 100 * relative_prefill_flops(QWEN2_AUDIO, text_tokens, audio_tokens, PAPER_INPUT)
    dual = 100 * relative_prefill_flops(QWEN2_AUDIO, text_tokens, audio_tokens, PAPER_DUAL)
    assert at_input == pytest.approx(78.49, abs=points)
    assert dual == pytest.approx(72.52, abs=points)


def test_keeping_everything_costs_everything() -> None:
    assert relative_prefill_flops(QWEN2_AUDIO, 20, 250, {0: 1.0, 29: 1.0}) == 1


def test_a_layer_without_a_site_takes_the_tokens_of_the_one_before() -> None:
    assert tokens_per_layer(5, 100, {3: 10, 1: 60}) == [100, 60, 60, 10, 10]


def test_refuses_a_retention_that_is_no_fraction() -> None:
    with pytest.raises(ValueError, match=r"retention at layer 29 must be a fraction in 0\.\.1, got 14\.91"):
        relative_prefill_flops(QWEN2_AUDIO, 0, 235, {29: 14.91})


def test_finds_the_decoder_in_a_thinker_and_in_a_text_config() -> None:
    for config in (
        SimpleNamespace(text_config=QWEN2_AUDIO),
        SimpleNamespace(thinker_config=SimpleNamespace(text_config=QWEN2_AUDIO)),
        QWEN2_AUDIO,
    ):
        assert decoder_config(config) is QWEN2_AUDIO


def test_refuses_decoders_it_cannot_count() -> None:
    """Of experts only some work for a token; a config without widths says nothing at all."""
    with pytest.raises(ValueError, match=r"cannot count the operations of moe: it has experts \(num_experts\)"):
        decoder_config(SimpleNamespace(**vars(QWEN2_AUDIO), model_type="moe", num_experts=64))
    with pytest.raises(ValueError, match="of odd: its config has no num_hidden_layers, hidden_size"):
        prefill_flops(SimpleNamespace(model_type="odd"), [1])


def test_counts_no_encoder_but_qwen2_audios() -> None:
    voxtral = SimpleNamespace(model_type="voxtral", text_config=QWEN2_AUDIO)
    assert not knows_encoder(voxtral)
    with pytest.raises(ValueError, match="whose encoder is known: leave it out"):
        prefill_flops(voxtral, [1] * 32, mel_frames=3000)


def test_refuses_layers_that_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="31 entries, the decoder 32 layers"):
        prefill_flops(QWEN2_AUDIO, [1] * 31)
