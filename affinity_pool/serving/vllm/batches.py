"""How much audio is encoded at once.

vLLM lets as many clips into a step as their promised rows fit its encoder's budget, and has measured memory with as
many as would fit unpooled: at ``keep=0.25`` four times the clips it is prepared for would meet in one batch. (It has
the same trouble with pruned video, and encodes videos one by one for it, which is slower where many come.) Clips with
different shared values are never batched, so each gets the number of a batch that holds no more than was measured.
"""

from __future__ import annotations

import secrets
import threading


class EncoderBatches:
    """Numbers clips in the order in which they come, those of one batch alike."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        """Rows that the encoder may make at once, before pooling; a clip that is longer is alone."""
        self._lock = threading.Lock()
        self._left = 0
        self._number = secrets.randbits(48)  # front ends know nothing of each other, and serve one engine

    def number(self, encoded: int) -> int:
        """Of the batch that a clip of so many rows goes to."""
        with self._lock:
            if encoded > self._left:
                self._number += 1
                self._left = self.budget
            self._left -= encoded
            return self._number
