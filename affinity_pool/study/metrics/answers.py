"""Accuracy of short answers, for spoken questions.

An answer is exact if it is the reference and nothing more, and contains the reference if the reference's words occur
in it next to each other, whatever surrounds them: "not five" contains "five". Texts are compared as ``text`` says;
articles count. A reference may give several right answers with "|" between them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .metric import Counts, Metric, share
from .text import check_reference, form, normalise


def accuracy(language: str | None = None) -> tuple[Metric, Metric]:
    """The shares of answers that are exact and that contain the reference."""

    def counting(is_right: Callable[[str, str], bool]) -> Callable[..., Counts]:
        def counts(reference: str, answer: str, question: str = "") -> Counts:
            check_reference(reference, language)
            right = filter(None, (normalise(text, language) for text in reference.split("|")))
            said = normalise(answer, language)
            return np.array([any(is_right(text, said) for text in right), 1], np.float64)

        return counts

    how = form(language)
    return (
        Metric("exact", "exact answers", "higher", counting(str.__eq__), share, f"match:exact|{how}"),
        Metric("contained", "answers found", "higher", counting(_is_within), share, f"match:contained|{how}"),
    )


def _is_within(words: str, text: str) -> bool:
    return f" {words} " in f" {text} "
