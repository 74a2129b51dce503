"""Labels of the prompts of random_speech, and what tests of losses share."""

from __future__ import annotations

import pytest
from random_speech import AUDIO
from torch import Tensor

EITHER = pytest.mark.parametrize("side", ["left", "right"])
UNTOLD = -100


def asked(inputs: dict[str, Tensor]) -> Tensor:
    """Labels: every token that is neither audio nor padding."""
    return inputs["input_ids"].masked_fill((inputs["input_ids"] == AUDIO) | (inputs["attention_mask"] == 0), UNTOLD)


def answers(inputs: dict[str, Tensor], left: int = 3) -> Tensor:
    """Labels: of each row what comes after its audio, but for the first ``left`` tokens of that."""
    audio = inputs["input_ids"] == AUDIO
    after = audio.flip(1).cumsum(1).flip(1) == 0
    return asked(inputs).masked_fill(~(after & (after.cumsum(1) > left)), UNTOLD)
