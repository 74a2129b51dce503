"""Models whose decoder attends to an encoder: their audio tokens are the encoder's output, padding included.

Whisper alone is known here: it hears 30 s at once, whatever the recording, so that most of what its decoder attends to
is often silence. Of every recording the tokens of its own seconds are told apart from those of the padding behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor

from ...models import Layer
from ..data.audio import Audio
from ..efficiency.flops import Flops, attending_flops
from ..errors import InputError
from .lslm import Lslm
from .subject import Subject

PROMPT = 4  # tokens of the decoder's, at most


@dataclass(frozen=True)
class EncoderDecoder(Subject):
    """Whisper, with or without a processor."""

    @property
    def pooled_depth(self) -> int | None:
        return None

    @property
    def audio_layers(self) -> Sequence[torch.nn.Module]:
        """Of the encoder: in the decoder there is no audio."""
        assert self.encoder is not None
        return self.encoder.layers  # type: ignore[return-value]  # a ModuleList

    @property
    def _last_of_audio(self) -> torch.nn.Module:
        assert self.encoder is not None
        return self.encoder

    def audio_positions(self, inputs: Mapping[str, Tensor]) -> Tensor:
        features = self.features(inputs)
        return features.new_ones(features.shape[0], features.shape[-1] // 2, dtype=torch.bool)

    def heard_positions(self, inputs: Mapping[str, Tensor], seconds: Sequence[float]) -> Tensor:
        audio = self.audio_positions(inputs)
        tokens = torch.tensor([ceil(round(of / self.token_seconds, 3)) for of in seconds], device=audio.device)
        return torch.arange(audio.shape[1], device=audio.device) < tokens[:, None]

    def text_tokens(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The decoder's prompt: where it starts, and that it is to write no timestamps; of those that know several
        languages also the language and the task."""
        features = self.features(inputs)
        return torch.full((features.shape[0],), PROMPT if self._multilingual else 2, device=features.device)

    @property
    def _multilingual(self) -> bool:
        """Whether it is to be told its task. The language it finds itself, unless its generation settings say one."""
        settings = self.model.generation_config
        return bool(getattr(settings, "is_multilingual", False) and getattr(settings, "task_to_id", None))

    def prefill_flops(self, text: float, audio: float, after: Mapping[Layer, float] | None = None) -> Flops:
        (left,) = (after or {}).values() or (audio,)
        return attending_flops(self.config, text, left)

    def columns(self, inputs: Mapping[str, Tensor]) -> tuple[int, int]:
        return int(self.text_tokens(inputs)[0]), self.audio_positions(inputs).shape[1]

    def _limits(self, longest: int, exactly: bool) -> dict[str, Any]:
        room = self.config.max_target_positions - PROMPT  # generate() refuses more
        if exactly and longest > room:
            raise InputError(f"{longest} new tokens are more than the {room} that this model has room for")
        longest = min(longest, room)
        return {
            "max_new_tokens": longest,
            "return_timestamps": False,
            **({"min_new_tokens": longest} if exactly else {}),
            **({"task": "transcribe"} if self._multilingual else {}),
        }

    def _told(self, inputs: Mapping[str, Tensor]) -> int:
        return 0


@dataclass(frozen=True)
class Whisper(EncoderDecoder, Lslm):
    """One with its processor, asked about recordings."""

    @property
    def longest(self) -> float:
        extractor = self.processor.feature_extractor
        return float(extractor.n_samples / extractor.sampling_rate)

    def check_prompt(self, prompt: str) -> None:
        """Refuse anything but transcription.

        Raises:
            InputError: it is asked something else.
        """
        if prompt.strip().lower() != "transcribe":
            raise InputError(f"is asked {prompt!r}, and {self.name} can only be asked to transcribe here")

    def batch(self, audio: Sequence[Audio], prompts: Sequence[str]) -> dict[str, Tensor]:
        self.check_clips(audio)
        for prompt in prompts:
            self.check_prompt(prompt)
        clips = [clip.samples for clip in audio]
        features = self.processor(clips, sampling_rate=self.rate, return_tensors="pt").input_features
        return self.to_device({"input_features": features})
