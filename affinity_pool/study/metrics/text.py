"""What two texts must agree in to count as the same.

Both are brought to Unicode NFKC, lower case and single spaces, and lose invisible format characters and all
punctuation and symbols, except an apostrophe or a hyphen inside a word and a point or comma inside a number. Accents
and other diacritics stay: "sabado" is not "sábado". Nothing else is done: "2" is not "two", "colour" not "color",
"5 %" is "5", and traditional characters are not simplified ones.

By language: Turkish and Azerbaijani "I" becomes "ı" and "İ" becomes "i". Languages written without spaces between
words are compared by characters (code points), the spaces left out: Chinese, Japanese, Thai, Lao, Khmer, Burmese,
Tibetan and Dzongkha.

This is the normaliser "plain". Error rates can be had with "whisper" instead, see ``whisper``: published figures are.
"""

from __future__ import annotations

import unicodedata
from typing import Literal, get_args

import regex

from ..errors import InputError
from . import whisper

Unit = Literal["word", "character"]
Normaliser = Literal["plain", "whisper"]

SPACELESS = frozenset({"zh", "cmn", "yue", "wuu", "ja", "th", "lo", "km", "my", "bo", "dz"})
DOTLESS = frozenset({"tr", "az"})

_LANGUAGE = regex.compile(r"([a-z]{2,3})([-_]\w+)*", regex.IGNORECASE)
_SPACELESS_SCRIPT = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]")
_FORMAT = regex.compile(r"\p{Cf}")
_WORD = regex.compile(
    r"[\p{L}\p{N}][\p{L}\p{M}\p{N}]*(?:(?:['-]|(?<=\p{N})[.,](?=\p{N}))[\p{L}\p{N}][\p{L}\p{M}\p{N}]*)*"
)
_ONE_SIGN = str.maketrans({"’": "'", "‐": "-"})
_DOTLESS_I = str.maketrans({"I": "ı", "İ": "i"})


def primary(language: str | None) -> str | None:
    """The language of a code, without its script or region: "zh" for "zh-Hans-CN"."""
    if language is None:
        return None
    match = _LANGUAGE.fullmatch(language)
    if match is None:
        raise InputError(f"language must be a code such as 'en' or 'zh-CN', got {language!r}")
    return match[1].lower()


def unit_of(language: str | None) -> Unit:
    """What error rates in a language count."""
    return "character" if primary(language) in SPACELESS else "word"


def normalise(
    text: str, language: str | None = None, unit: Unit | None = None, normaliser: Normaliser = "plain"
) -> str:
    """The words or characters that are compared, with single spaces between them; ``unit`` None: as the language is."""
    letters = (unit or unit_of(language)) == "character"
    if _checked(normaliser) == "whisper":
        return whisper.normalise(text, primary(language), letters)
    text = unicodedata.normalize("NFKC", _FORMAT.sub("", text)).translate(_ONE_SIGN)
    if primary(language) in DOTLESS:
        text = text.translate(_DOTLESS_I)
    words = _WORD.findall(unicodedata.normalize("NFKC", text.lower()))  # in Greek, lower case composes further
    return " ".join("".join(words) if letters else words)


def check_reference(
    text: str, language: str | None = None, unit: Unit | None = None, normaliser: Normaliser = "plain"
) -> None:
    """Whether answers can be compared with a right answer.

    Raises:
        InputError: nothing is left of it, or its script has no spaces and nothing says that characters are to count.
    """
    kept = normalise(text, language, unit, normaliser)
    if not kept:
        raise InputError(f"a reference text has no words: {text!r}")
    if language is None and unit is None and _SPACELESS_SCRIPT.search(kept):
        raise InputError(f"the reference {text!r} may have no spaces between words: give its language, such as 'zh'")


def form(language: str | None = None, unit: Unit | None = None, normaliser: Normaliser = "plain") -> str:
    """What ``normalise`` does, for a metric's signature."""
    if _checked(normaliser) == "whisper":
        return f"unit:{unit or unit_of(language)}|{whisper.form(primary(language))}"
    case = "lower-dotless" if primary(language) in DOTLESS else "lower"
    return f"unit:{unit or unit_of(language)}|form:NFKC|case:{case}|punctuation:no"


def _checked(normaliser: Normaliser) -> Normaliser:
    if normaliser not in get_args(Normaliser):
        raise InputError(f"normaliser must be one of {', '.join(get_args(Normaliser))}, got {normaliser!r}")
    return normaliser
