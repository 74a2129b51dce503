"""The processor that lies in the random Phi-4-multimodal checkpoint, where the published one carries its own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin


class Phi4StandIn(ProcessorMixin):
    """Mel frames of clips, each computed by itself; images are never asked for."""

    image_processor = SimpleNamespace(dynamic_hd=1)
    """vLLM asks it for the largest image."""

    def __init__(self, audio_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(audio_processor, tokenizer, **kwargs)

    def frames(self, audio: np.ndarray) -> torch.Tensor:
        """The mel frames ``[frames, bins]`` of one clip."""
        extractor = self.audio_processor
        outputs = extractor(np.asarray(audio, dtype=np.float32), sampling_rate=extractor.sampling_rate)
        return torch.as_tensor(outputs["audio_input_features"][0])

    def __call__(self, text: Any = None, audios: Any = None, return_tensors: Any = None, **_: Any) -> BatchFeature:
        text = [text] if isinstance(text, str) else text
        outputs = dict(self.tokenizer(text, add_special_tokens=False, return_tensors="pt"))
        outputs["image_sizes"] = []
        if audios:
            clips = [self.frames(audio) for audio, _rate in audios]
            outputs["input_audio_embeds"] = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
        return BatchFeature(outputs)
