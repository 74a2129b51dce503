"""The processor that lies in the random Ultravox checkpoint, where published ones carry code of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin

FRAMES_A_ROW = 16
"""Mel frames that make one audio token: two by the encoder's stride, eight side by side."""


class UltravoxStandIn(ProcessorMixin):
    """Cuts a clip into windows, each filled up to whole audio tokens, so that no padding is seen by any."""

    def __init__(self, audio_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(audio_processor, tokenizer, **kwargs)

    def windows(self, audio: np.ndarray) -> list[torch.Tensor]:
        """The mel frames ``[bins, frames]`` of each window of one clip."""
        frames = self.audio_processor
        row = FRAMES_A_ROW * frames.hop_length
        audio = np.pad(audio, (0, -len(audio) % row))
        length = frames.chunk_length * frames.sampling_rate
        cuts = [audio[start : start + length] for start in range(0, len(audio), length)]
        kwargs = {"sampling_rate": frames.sampling_rate, "padding": False, "return_tensors": "pt"}
        return [frames(cut, **kwargs)["input_features"][0] for cut in cuts]

    def __call__(self, text: Any = None, audios: Any = None, return_tensors: Any = None, **_: Any) -> BatchFeature:
        text = [text] if isinstance(text, str) else text
        outputs = dict(self.tokenizer(text, add_special_tokens=False, return_tensors="pt"))
        if audios:
            clips = [self.windows(np.asarray(audio, dtype=np.float32)) for audio in audios]
            windows = [window for clip in clips for window in clip]
            lengths = torch.tensor([window.shape[-1] for window in windows])
            longest = int(lengths.max())
            outputs["audio_values"] = torch.stack(
                [torch.nn.functional.pad(window, (0, longest - window.shape[-1])) for window in windows]
            )
            outputs["audio_lens"] = lengths
            outputs["audio_token_len"] = lengths // FRAMES_A_ROW
            outputs["audio_num_chunks"] = torch.tensor([len(clip) for clip in clips])
        return BatchFeature(outputs)
