"""Floating point operations of a prefill, from a model's config and the number of tokens each decoder layer sees.

A multiply-add counts as two. Only matrix products count, as in ``torch.utils.flop_counter``: norms, rotary phases,
softmax, biases and the pooling itself (about ``2 * (window + 1)`` operations per feature and token, once a site) are
left out, far below a thousandth of the whole at the sizes in question. For a decoder layer of width ``h`` with ``H``
query heads and ``K`` key-value heads of size ``d``, a gated MLP of width ``f``, and ``n`` tokens:

    projections   2 n h d (2 H + 2 K)     queries and output with H heads, keys and values with K
    attention     4 n^2 H d               scores and weighted sum over the full n x n square: the causal half that
                                          flash kernels skip is counted, as torch's counter and dense kernels do
    mlp           6 n h f                 gate, up, down
    lm_head       2 h V                   for each token whose logits are computed; generate() needs the last one's

Whisper's decoder attends to m tokens of an encoder besides, and its MLP has no gate:

    projections   12 n h^2 + 4 m h^2      the second: keys and values of what it attends to, once
    attention     4 n^2 h + 4 n m h
    mlp           4 n h f

With the paper's figures (Qwen2-Audio, input kept at 78.64 %, layers 29-31 at 14.91 %) this gives the paper's 78.49 and
72.52 % of the unpooled prefill, to a hundredth of a point, for 235 audio tokens (9.4 s) and no text; up to 30 s both
stay within 0.4 points. Text is not pooled: 20 tokens of a chat template raise both, by 0.2 to 2.3 points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

DECODER = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")


@dataclass(frozen=True)
class Flops:
    """Operations of one prefill by term, in FLOPs."""

    projections: float
    attention: float
    mlp: float
    lm_head: float
    encoder: float

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))

    def __add__(self, other: Flops) -> Flops:
        return Flops(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @property
    def decoder(self) -> float:
        """All but the audio encoder: what pooling can change."""
        return self.total - self.encoder


def prefill_flops(config: Any, tokens_per_layer: Sequence[float], *, logits: int = 1, mel_frames: int = 0) -> Flops:
    """Count the prefill of one sequence.

    Args:
        config: the config of the decoder, or of the whole model (see :func:`decoder_config`).
        tokens_per_layer: tokens that enter each decoder layer, one entry a layer; fractions are fine.
        logits: tokens whose logits are computed.
        mel_frames: frames that enter Qwen2-Audio's encoder (``config.audio_config``), padding included: processors
            pad to a fixed length. 0 leaves the encoder out.

    Raises:
        ValueError: the decoder's layers are of a kind that is not counted here, or the numbers do not fit the config.
    """
    if mel_frames and not knows_encoder(config):
        raise ValueError("mel_frames needs the config of a Qwen2-Audio model, whose encoder is known: leave it out")
    decoder = decoder_config(config)
    depth, width = decoder.num_hidden_layers, decoder.hidden_size
    if len(tokens_per_layer) != depth:
        raise ValueError(f"tokens_per_layer has {len(tokens_per_layer)} entries, the decoder {depth} layers")
    heads = decoder.num_attention_heads
    kv_heads = getattr(decoder, "num_key_value_heads", None) or heads
    head = getattr(decoder, "head_dim", None) or width // heads
    tokens = sum(tokens_per_layer)
    return Flops(
        projections=2 * tokens * width * head * (2 * heads + 2 * kv_heads),
        attention=4 * sum(n * n for n in tokens_per_layer) * heads * head,
        mlp=6 * tokens * width * decoder.intermediate_size,
        lm_head=2 * logits * width * decoder.vocab_size,
        encoder=encoder_flops(config, mel_frames) if mel_frames else 0,
    )


def attending_flops(config: Any, text: float, memory: float, *, mel_frames: int = 0) -> Flops:
    """Count the decoder of an encoder-decoder model up to the first token, for one sequence.

    Args:
        config: of a Whisper.
        text: tokens of the decoder's prompt.
        memory: tokens of the encoder's output that it attends to; fractions are fine.
        mel_frames: as for :func:`prefill_flops`.

    Raises:
        ValueError: the config is of another kind.
    """
    if getattr(config, "model_type", None) != "whisper":
        raise ValueError(f"cannot count the operations of {getattr(config, 'model_type', type(config).__name__)}")
    d, layers = config.d_model, config.decoder_layers
    return Flops(
        projections=layers * d * d * (12 * text + 4 * memory),
        attention=layers * 4 * d * text * (text + memory),
        mlp=layers * 4 * text * d * config.decoder_ffn_dim,
        lm_head=2 * d * config.vocab_size,
        encoder=encoder_flops(config, mel_frames) if mel_frames else 0,
    )


def decoder_config(config: Any) -> Any:
    """The part of a model's config that describes its decoder: ``thinker_config`` and ``text_config`` are looked into.

    Raises:
        ValueError: it does not describe gated MLP layers of one width, the only ones counted here.
    """
    for name in ("thinker_config", "text_config"):
        config = getattr(config, name, None) or config
    kind = getattr(config, "model_type", type(config).__name__)
    missing = [name for name in DECODER if not hasattr(config, name)]
    if missing:
        raise ValueError(f"cannot count the operations of {kind}: its config has no {', '.join(missing)}")
    experts = [name for name in ("num_experts", "num_local_experts", "n_routed_experts") if getattr(config, name, None)]
    if experts:
        raise ValueError(f"cannot count the operations of {kind}: it has experts ({experts[0]}), and uses only some")
    return config


def knows_encoder(config: Any) -> bool:
    """Whether the encoder is Whisper's, as in Qwen2-Audio: the one that can be counted; others differ in details."""
    return getattr(config, "model_type", None) in ("qwen2_audio", "whisper")


def encoder_flops(config: Any, mel_frames: int) -> float:
    """Whisper's encoder on one clip: two convolutions (the second halves the length), attention and MLP layers; and
    Qwen2-Audio's projector behind it: a mean over pairs, one linear map to the decoder's width."""
    audio = getattr(config, "audio_config", config)
    d, n = audio.d_model, mel_frames // 2
    projector = 0 if audio is config else 2 * (n // 2) * d * decoder_config(config).hidden_size
    convolutions = 2 * 3 * d * (mel_frames * audio.num_mel_bins + n * d)
    layer = 8 * n * d * d + 4 * n * n * d + 4 * n * d * audio.encoder_ffn_dim
    return convolutions + audio.encoder_layers * layer + projector


def tokens_per_layer(depth: int, tokens: float, after: Mapping[int, float]) -> list[float]:
    """Tokens entering each of ``depth`` layers, when ``tokens`` arrive and ``after[layer]`` are left from it on."""
    return [after[max(sites)] if (sites := [s for s in after if s <= layer]) else tokens for layer in range(depth)]


def relative_prefill_flops(
    config: Any, text_tokens: float, audio_tokens: float, retention: Mapping[int, float]
) -> float:
    """Decoder prefill with pooling as a fraction of the same prefill without.

    Args:
        config: as for :func:`prefill_flops`; the encoder, which pooling does not touch, is left out.
        text_tokens: tokens of the prompt that are not audio.
        audio_tokens: audio tokens before pooling.
        retention: ``{layer: fraction}`` of the *original* audio tokens that enter that layer and all up to the next
            entry: ``{0: 0.7864, 29: 0.1491}``.
    """
    for layer, fraction in retention.items():
        if not 0 <= fraction <= 1:
            raise ValueError(f"retention at layer {layer} must be a fraction in 0..1, got {fraction}")
    depth = decoder_config(config).num_hidden_layers
    after = {layer: text_tokens + fraction * audio_tokens for layer, fraction in retention.items()}
    whole = text_tokens + audio_tokens
    pooled = prefill_flops(config, tokens_per_layer(depth, whole, after))
    return pooled.total / prefill_flops(config, [whole] * depth).total
