"""Which metrics a task is judged by."""

from __future__ import annotations

from functools import cache

from ..errors import InputError
from .answers import accuracy
from .metric import Metric
from .text import Normaliser
from .translation import bleu, chrf
from .wer import error_rates

METRICS = ("wer", "cer", "accuracy", "bleu")
"""What an utterance may ask for."""


@cache
def for_task(
    task: str, metric: str | None = None, language: str | None = None, normaliser: Normaliser = "plain"
) -> tuple[Metric, ...]:
    """The metrics of an utterance, the headline first.

    Args:
        task: the prompt. Without ``metric`` it decides: "transcri..." is scored by ``wer``, a text with "translat" by
            ``bleu``, anything else by ``accuracy``.
        metric: one of METRICS. ``cer`` is ``wer`` by characters in any language.
        language: of the reference, as a code; None: one with spaces between words.
        normaliser: "plain" or "whisper", of the texts before ``wer`` and ``cer``; the others know their own.
    """
    if metric is None:
        asked = task.strip().lower()
        metric = "wer" if asked.startswith("transcri") else "bleu" if "translat" in asked else "accuracy"
    match metric:
        case "wer":
            return error_rates(language, normaliser=normaliser)
        case "cer":
            return error_rates(language, "character", normaliser)
        case "accuracy":
            return accuracy(language)
        case "bleu":
            return bleu(language), chrf(language)
    raise InputError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
