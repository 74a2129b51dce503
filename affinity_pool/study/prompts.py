"""From recordings and questions to the keyword arguments of ``generate``, through each family's own processor.

One entry of ``_FAMILIES`` for each family says how its chats are worded: where the clip stands in a message, or that
the processor wants finished text, or the audio inside the message. Kimi-Audio is not among them: its own code makes
its prompts.

All were run with transformers' processor classes around tokenizers and chat templates made for the tests, Qwen2.5-Omni
and Phi-4-multimodal without their image processors; a published tokenizer or template was at hand for none but
Qwen2-Audio's architecture in the bundled model.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import soundfile
from torch import Tensor

Messages = list[dict[str, Any]]

CLIP = {"type": "audio", "audio_url": "-"}  # processors look at the type; Qwen2-Audio's template looks for the key

_WORDED = {"add_generation_prompt": True, "tokenize": False}


def model_inputs(processor: Any, model_type: str, clips: list[np.ndarray], prompts: list[str]) -> dict[str, Tensor]:
    """Keyword arguments of ``model.generate`` for a batch of chats, each one clip and one question, padded on the left.

    Args:
        processor: of the class that transformers has for the family.
        model_type: ``model.config.model_type``.
        clips: ``B`` recordings, each ``[samples]``, float, at the processor's sampling rate.
        prompts: ``B`` questions. Qwen3-ASR takes no question: there it is the context of the transcription.

    Raises:
        ValueError: unknown family, lists of different lengths, or a clip longer than the processor takes in whole: it
            would cut the rest off without a word.
    """
    if model_type not in _FAMILIES:
        raise ValueError(f"model_type is {model_type!r}, of whose prompts nothing is known: {', '.join(_FAMILIES)}")
    if len(clips) != len(prompts) or not clips:
        raise ValueError(f"{len(clips)} clips and {len(prompts)} prompts: give one prompt for each clip, at least one")
    clips = [np.asarray(clip, np.float32) for clip in clips]
    longest = longest_clip(processor, model_type)
    for index, clip in enumerate(clips):
        if clip.ndim != 1 or not 0 < clip.size <= longest:
            raise ValueError(
                f"clips[{index}] has shape {list(clip.shape)}; wanted one channel of 1 to {longest} samples"
            )
    inputs = _FAMILIES[model_type](processor, clips, prompts)
    return {name: value for name, value in inputs.items() if isinstance(value, Tensor)}


def sampling_rate(processor: Any) -> int:
    """Samples a second that the processor wants."""
    return _extractor(processor).sampling_rate


def _extractor(processor: Any) -> Any:
    return getattr(processor, "feature_extractor", None) or processor.audio_processor


def longest_clip(processor: Any, model_type: str) -> float:
    """Samples of one clip that the processor takes whole: it would cut the rest off without a word."""
    if model_type in ("qwen2_audio", "qwen2_5_omni_thinker"):
        return _extractor(processor).n_samples
    return getattr(processor, "max_audio_len", np.inf) * sampling_rate(processor)


def _templated(messages: Callable[[str], Messages]) -> Callable[..., Any]:
    """The processor words the chat by its template, then joins it with the audio."""

    def inputs(processor: Any, clips: list[np.ndarray], prompts: list[str]) -> Any:
        chats = [messages(prompt) for prompt in prompts]
        return _joined(processor, processor.apply_chat_template(chats, **_WORDED), clips)

    return inputs


def _joined(processor: Any, texts: list[str], clips: list[np.ndarray]) -> Any:
    rate = sampling_rate(processor)
    return processor(
        text=texts, audio=clips, sampling_rate=rate, padding=True, padding_side="left", return_tensors="pt"
    )


def _clip_then_text(prompt: str) -> Messages:
    return [{"role": "user", "content": [CLIP, {"type": "text", "text": prompt}]}]


def _text_then_clip(prompt: str) -> Messages:
    return [{"role": "user", "content": [{"type": "text", "text": prompt}, CLIP]}]


def _context_then_clip(prompt: str) -> Messages:
    context = {"role": "system", "content": [{"type": "text", "text": prompt}]}
    return [context, {"role": "user", "content": [CLIP]}]


def _voxtral(processor: Any, clips: list[np.ndarray], prompts: list[str]) -> Any:
    """mistral-common words the chat, and reads the audio as a file inside the message."""

    def encoded(clip: np.ndarray) -> str:
        file = io.BytesIO()
        soundfile.write(file, clip, sampling_rate(processor), format="WAV", subtype="FLOAT")
        return base64.b64encode(file.getvalue()).decode()

    chats = [
        [{"role": "user", "content": [{"type": "audio", "base64": encoded(clip)}, {"type": "text", "text": prompt}]}]
        for clip, prompt in zip(clips, prompts, strict=True)
    ]
    processor.tokenizer.padding_side = "left"
    return processor.apply_chat_template(chats)


def _granite(processor: Any, clips: list[np.ndarray], prompts: list[str]) -> Any:
    """The tokenizer words the chat, the audio's token stands in its text."""
    chats = [[{"role": "user", "content": f"{processor.audio_token}{prompt}"}] for prompt in prompts]
    texts = processor.tokenizer.apply_chat_template(chats, **_WORDED)
    return processor(texts, clips, padding_side="left", return_tensors="pt")


def _phi4(processor: Any, clips: list[np.ndarray], prompts: list[str]) -> Any:
    """Finished text: the chat format of the model is short, and its tokenizer's template knows no audio."""
    texts = [f"<|user|>{processor.audio_token}{prompt}<|end|><|assistant|>" for prompt in prompts]
    return _joined(processor, texts, clips)


_FAMILIES: dict[str, Callable[[Any, list[np.ndarray], list[str]], Any]] = {
    "qwen2_audio": _templated(_clip_then_text),
    "qwen2_5_omni_thinker": _templated(_clip_then_text),
    "glmasr": _templated(_clip_then_text),
    "audioflamingo3": _templated(_text_then_clip),
    "musicflamingo": _templated(_text_then_clip),
    "qwen3_asr": _templated(_context_then_clip),
    "voxtral": _voxtral,
    "granite_speech": _granite,
    "granite_speech_plus": _granite,
    "phi4_multimodal": _phi4,
}
