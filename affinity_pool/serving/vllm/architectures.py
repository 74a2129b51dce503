"""The models that are pooled, by the names under which vLLM registers them, and where vLLM keeps their classes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """One entry of vLLM's registry."""

    module: str
    """In ``vllm.model_executor.models``."""
    name: str
    """Of the class in it."""
    processor: str = "PooledProcessor"
    """Name of what goes before the model's own processor, in ``seam`` or ``special``."""
    model: str = "PooledModel"
    """The same of the model."""


ARCHITECTURES = {
    "Qwen2AudioForConditionalGeneration": Architecture("qwen2_audio", "Qwen2AudioForConditionalGeneration"),
    "AudioFlamingo3ForConditionalGeneration": Architecture("audioflamingo3", "AudioFlamingo3ForConditionalGeneration"),
    "Qwen3ASRForConditionalGeneration": Architecture("qwen3_asr", "Qwen3ASRForConditionalGeneration"),
    "GlmAsrForConditionalGeneration": Architecture("glmasr", "GlmAsrForConditionalGeneration"),
    "GraniteSpeechForConditionalGeneration": Architecture("granite_speech", "GraniteSpeechForConditionalGeneration"),
    "UltravoxModel": Architecture("ultravox", "UltravoxModel"),
    "Phi4MMForCausalLM": Architecture("phi4mm", "Phi4MMForCausalLM"),
    "VoxtralForConditionalGeneration": Architecture(
        "voxtral", "VoxtralForConditionalGeneration", processor="ExpandedPromptProcessor"
    ),
    **dict.fromkeys(
        ("Qwen2_5OmniModel", "Qwen2_5OmniForConditionalGeneration"),
        Architecture(
            "qwen2_5_omni_thinker",
            "Qwen2_5OmniThinkerForConditionalGeneration",
            model="OmniModel",
        ),
    ),
}
