"""What transformers makes of a clip and of a prompt: the rows of audio, and a greedy answer to any rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Answer = tuple[list[int], list[float], int]
"""Token ids, their log-probabilities, and the length of the prompt."""


@dataclass
class Judge:
    """One model in transformers, and what of it differs from family to family."""

    model: Any
    ids: Callable[[int], list[int]]
    """The prompt for so many clips, with one placeholder for each."""
    placeholder: int
    encode: Callable[[np.ndarray], torch.Tensor]
    """A clip at 16 kHz to the rows ``[n, D]`` that take the place of its placeholder."""

    @torch.inference_mode()
    def rows(self, audio: np.ndarray, rate: int = 16_000) -> torch.Tensor:
        """The audio tokens of one clip, ``[n, D]``."""
        if rate != 16_000:
            raise ValueError(f"rate must be 16000, not {rate}: resampling is not what is compared here")
        return self.encode(np.asarray(audio, dtype=np.float32))

    @torch.inference_mode()
    def answer(self, clips: Sequence[torch.Tensor], tokens: int = 8, end: int | None = None) -> Answer:
        """What the model says greedily, up to the token ``end``, with these rows as its audio tokens.

        The whole sequence is computed for every token: nothing is cached that could be wrong.
        """
        embed, waiting, parts = self.model.get_input_embeddings(), iter(clips), []
        for token in self.ids(len(clips)):
            parts.append(next(waiting) if token == self.placeholder else embed(torch.tensor([token])))
        sequence, ids, logprobs = torch.cat(parts)[None], [], []
        length = sequence.shape[1]
        for _ in range(tokens):
            count = sequence.shape[1]
            logits = self.model(
                inputs_embeds=sequence,
                attention_mask=torch.ones(1, count, dtype=torch.long),
                position_ids=torch.arange(count)[None],
                use_cache=False,
            ).logits
            scores = logits[0, -1].float().log_softmax(-1)
            ids.append(int(scores.argmax()))
            logprobs.append(float(scores[ids[-1]]))
            if ids[-1] == end:
                break
            sequence = torch.cat([sequence, embed(torch.tensor([ids[-1:]]))], dim=1)
        return ids, logprobs, length
