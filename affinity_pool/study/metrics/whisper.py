"""Texts as OpenAI's evaluation of Whisper compares them, for error rates beside published ones.

English: contractions written out, numbers as digits, American spelling, no "uh" and no brackets. A text that names no
language is taken for English. Others: lower case, without brackets, symbols, punctuation and marks. A character is a
grapheme where words have no spaces between them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.metadata import version

from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer


def normalise(text: str, language: str | None, letters: bool) -> str:
    """The words that are compared, or their ``letters``, with single spaces between them; ``language`` a bare code."""
    words = _normaliser(_is_english(language), letters)(text).split()
    return " ".join("".join(words) if letters and _is_english(language) else words)


def form(language: str | None) -> str:
    """What ``normalise`` does, for a metric's signature."""
    kind = "english" if _is_english(language) else "basic"
    return f"normaliser:whisper-{kind}|whisper-normalizer:{version('whisper-normalizer')}"


def _is_english(language: str | None) -> bool:
    return language in (None, "en")


@cache
def _normaliser(english: bool, letters: bool) -> Callable[[str], str]:
    found: Callable[[str], str] = EnglishTextNormalizer() if english else BasicTextNormalizer(split_letters=letters)
    return found
