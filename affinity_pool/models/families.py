"""Where each model family keeps what the hooks need. To add one, add its ``config.model_type`` to ``FAMILIES``.

The defaults fit models that join an audio tower to a decoder called ``language_model`` and replace placeholder tokens
in ``input_ids`` by audio embeddings before the first decoder layer. Where the decoder attends to an encoder it is that
attention's memory that is pooled. Models that add audio to every token have nothing to pool: ``UNFIT`` names them with
the reason. See docs/extending.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .calls import Calls
from .kimi_audio import KimiAudioCalls, no_audio_token_id
from .memory import MemoryCalls
from .running import Patched
from .transformers_calls import TransformersCalls

HOP = 0.01  # seconds from one mel frame to the next in the feature extractor of every family here


def inner_model(model: Any) -> Any:
    """The module that holds encoder and decoder: the model itself in transformers 4, inside the head since."""
    return model.model if hasattr(getattr(model, "model", None), "language_model") else model


def language_model(model: Any) -> Any:
    """The decoder: the module that holds ``layers`` and ``rotary_emb``."""
    inner = inner_model(model)
    decoder = inner.language_model if hasattr(inner, "language_model") else inner.model
    return decoder if hasattr(decoder, "layers") else decoder.model  # transformers 4 keeps the head in between


def audio_tower(model: Any) -> Any:
    """The encoder, without the projector behind it; None where the model has none by this name."""
    return getattr(inner_model(model), "audio_tower", None)


def encoder(model: Any) -> Any:
    """The same where it is called ``encoder``."""
    return inner_model(model).encoder


def audio_token_id(config: Any) -> int:
    """The id of the placeholder that stands for one audio embedding."""
    token = getattr(config, "audio_token_id", None)
    return config.audio_token_index if token is None else token


def unknown(config: Any) -> None:
    """A family that does not say how long an audio token lasts."""


def conv_and_pool(config: Any) -> float:
    """Whisper's encoder, whose second convolution halves the frames, and an average over pairs behind it."""
    return 4 * HOP


def conv_and_stack(config: Any) -> float:
    """Whisper's encoder again, but the projector takes several of its frames side by side as one vector."""
    encoder = config.audio_config
    return 2 * HOP * encoder.intermediate_size / encoder.hidden_size


def three_convs_in_chunks(config: Any) -> float:
    """Chunks of ``2 * n_window`` frames go each alone through three convolutions that halve them, rounding up."""
    frames = tokens = 2 * config.audio_config.n_window
    for _ in range(3):
        tokens = (tokens + 1) // 2
    return frames / tokens * HOP


def conformer_and_queries(config: Any) -> float:
    """Pairs of mel frames; of each ``window_size`` of them the Q-Former makes a fixed number of tokens."""
    return 2 * HOP * config.window_size / (config.window_size // config.downsample_rate)


def conv_subsampling(config: Any) -> float:
    """Convolutions that halve the frames ``log2(time_reduction)`` times, stacked if ``downsample_rate`` says so."""
    return HOP * config.audio_config.time_reduction * config.audio_config.downsample_rate


def two_convs(config: Any) -> float:
    """Whisper's encoder, whose second convolution halves the frames."""
    return 2 * HOP


def no_placeholder(config: Any) -> int:
    raise NotImplementedError("the decoder has no audio among its tokens: it attends to the encoder's output")


def of_decoder(model: Any) -> Any:
    """The decoder of an encoder-decoder model; None in a head that has none."""
    inner = getattr(model, "model", model)
    return getattr(inner, "decoder", None) if hasattr(inner, "encoder") else None


def of_encoder(model: Any) -> Any:
    """Its encoder."""
    return getattr(model, "model", model).encoder


@dataclass(frozen=True)
class Family:
    """How to find the decoder, the audio positions, and whether a call carries audio; and what a study asks for."""

    features: str = "input_features"
    """Keyword of the model's forward that carries the audio: a call without it is text or decoding."""
    decoder: Callable[[Any], Any] = language_model
    """Of the model: the module that holds ``layers`` and ``rotary_emb``."""
    audio_token_id: Callable[[Any], int] = audio_token_id
    """Of the model's config: the id of the placeholder that stands for one audio embedding."""
    token_seconds: Callable[[Any], float | None] = unknown
    """Of the model's config: the seconds that one audio token stands for, None where that cannot be said."""
    encoder: Callable[[Any], torch.nn.Module | None] = audio_tower
    """Of the model: the module that makes embeddings of features, None where the model has none."""
    calls: Callable[[Patched], Calls] = TransformersCalls
    """How it is called."""
    attends: str | None = None
    """Of an encoder-decoder model, in each decoder layer the name of the attention to the encoder's output, which is
    what is pooled. None: audio is among the decoder's own tokens."""


def encoder_decoder(features: str = "input_features", **parts: Any) -> Family:
    """A family whose decoder attends to an encoder; ``parts`` are what is not as in most of them."""
    usual: dict[str, Any] = {"decoder": of_decoder, "encoder": of_encoder, "attends": "encoder_attn"}
    return Family(features, audio_token_id=no_placeholder, calls=MemoryCalls, **(usual | parts))


def _hears_and_writes(model: Any) -> bool:
    """Whether it is the head that takes speech and generates text alone, of those of SeamlessM4T."""
    return hasattr(model, "speech_encoder") and not hasattr(model, "t2u_model") and not hasattr(model, "text_encoder")


FAMILIES: dict[str, Family] = {
    "qwen2_audio": Family(token_seconds=conv_and_pool),
    "voxtral": Family(token_seconds=conv_and_stack),
    "audioflamingo3": Family(token_seconds=conv_and_pool),
    "musicflamingo": Family(token_seconds=conv_and_pool),
    "glmasr": Family(token_seconds=conv_and_stack),
    "qwen3_asr": Family(token_seconds=three_convs_in_chunks),
    "granite_speech": Family(token_seconds=conformer_and_queries, encoder=encoder),
    "granite_speech_plus": Family(token_seconds=conformer_and_queries, encoder=encoder),
    "qwen2_5_omni_thinker": Family(token_seconds=conv_and_pool),
    "phi4_multimodal": Family(
        "audio_input_features",
        audio_token_id=lambda config: config.audio_config.audio_token_id,
        token_seconds=conv_subsampling,
        encoder=lambda model: model.model.embed_tokens_extend.audio_embed.encoder,
    ),
    "kimi_audio": Family(
        "whisper_input_feature",
        audio_token_id=no_audio_token_id,
        token_seconds=lambda config: 0.08,  # four of Whisper's embeddings, side by side
        encoder=lambda model: None,  # Whisper belongs to the code that makes the prompt
        calls=KimiAudioCalls,
    ),
    "whisper": encoder_decoder(token_seconds=two_convs),
    "moonshine": encoder_decoder("input_values"),
    "speech_to_text": encoder_decoder(token_seconds=lambda config: HOP * 2**config.num_conv_layers),
    "seamless_m4t_v2": encoder_decoder(
        decoder=lambda model: getattr(model, "text_decoder", None) if _hears_and_writes(model) else None,
        encoder=lambda model: model.speech_encoder,
        attends="cross_attention",
    ),
}

_CROSS_ATTENTION = (
    "its decoder attends to an encoder, and of such models only whisper, moonshine, speech_to_text and seamless_m4t_v2 "
    "were tried with Site('memory')"
)
_CODEBOOKS = "each of its tokens is a sum of text and audio codes: none is audio alone"
_TALKER = (
    "its talker reads the thinker's hidden states at the caller's positions: patch model.thinker, and generate with "
    "return_audio=False"
)
_PER_LAYER = "each of its layers adds an embedding of the caller's tokens, which pooling would leave behind"
_DEEPSTACK = "its thinker adds image features to hidden states between layers, at the caller's positions (deepstack)"

UNFIT: dict[str, str] = {
    "speech-encoder-decoder": _CROSS_ATTENTION,
    "speecht5": _CROSS_ATTENTION,
    "seamless_m4t": _CROSS_ATTENTION,
    "moonshine_streaming": _CROSS_ATTENTION,
    "canary": _CROSS_ATTENTION,
    "cohere_asr": _CROSS_ATTENTION,
    "dia": _CROSS_ATTENTION,
    "voxtral_realtime": "it adds audio to the embedding of every token, text too: none is audio alone",
    "moshi": _CODEBOOKS,
    "kyutai_speech_to_text": _CODEBOOKS,
    "higgs_audio_v2": "its layers send audio tokens through weights of their own, found by the caller's positions",
    "gemma3n": _PER_LAYER,
    "gemma4": _PER_LAYER,
    "qwen2_5_omni": _TALKER,
    "qwen3_omni_moe": _DEEPSTACK,
    "qwen3_omni_moe_thinker": _DEEPSTACK,
}
"""Well-known models that pooling inside the decoder cannot serve, by ``config.model_type``, and why."""


def family_of(model: Any) -> Family:
    """Look a model's family up by ``config.model_type``; one that does not fit, or is unknown, is refused by name."""
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        inside = [name for name, module in _children(model) if getattr(_config(module), "model_type", None) in FAMILIES]
        hint = f"; patch its .{inside[0]}" if inside else ""
        raise TypeError(f"model must be a transformers model, got {type(model).__name__}{hint}")
    kind = getattr(model.config, "model_type", None)
    if kind in FAMILIES:
        return FAMILIES[kind]
    named = f"{type(model).__name__} (model_type {kind!r})"
    if kind in UNFIT:
        raise NotImplementedError(f"{named} cannot be pooled: {UNFIT[kind]}")
    raise NotImplementedError(
        f"{named} is not supported, only {', '.join(FAMILIES)}: "
        "if it replaces audio placeholders by embeddings, add a Family to affinity_pool.models.FAMILIES"
    )


def _children(model: Any) -> list[tuple[str, torch.nn.Module]]:
    return list(model.named_children()) if isinstance(model, torch.nn.Module) else []


def _config(module: torch.nn.Module) -> Any:
    return getattr(module, "config", None)
