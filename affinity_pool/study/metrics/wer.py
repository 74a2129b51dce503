"""Word error rate: substituted, deleted and inserted words per word of the reference, summed over utterances.

Before comparing, both sides are brought to Unicode NFKC, lower case and single spaces, and lose punctuation except
apostrophes and hyphens inside words. Nothing else is normalised: "2" is not "two", "colour" not "color". Languages
written without spaces need a character error rate instead.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import jiwer

from .. import InputError

Mark = tuple[str, str]
"""A word and what is wrong with it: equal (nothing), substitute, insert or delete."""

_WORD = re.compile(r"\w+(?:['’-]\w+)*")


@dataclass(frozen=True)
class WordErrors:
    """Errors of one or many transcripts."""

    substitutions: int
    deletions: int
    insertions: int
    words: int
    """Words of the references."""

    @property
    def count(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Can exceed 1: insertions have no bound."""
        return self.count / self.words


def normalise(text: str) -> str:
    """The words that are compared, with single spaces between them."""
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).lower().replace("’", "'")))


def word_errors(references: Sequence[str], transcripts: Sequence[str]) -> WordErrors:
    """Count errors over pairs of texts, each normalised here.

    Raises:
        InputError: a reference has no words, so no rate can be given.
    """
    words = [normalise(text) for text in references]
    for text, kept in zip(references, words, strict=True):
        if not kept:
            raise InputError(f"a reference text has no words: {text!r}")
    out = jiwer.process_words(words, [normalise(text) for text in transcripts])
    return WordErrors(out.substitutions, out.deletions, out.insertions, out.hits + out.substitutions + out.deletions)


def marked(reference: str, transcript: str) -> list[Mark]:
    """The words of ``transcript``, and the deleted ones of ``reference`` between them, each with what is wrong."""
    right, said = normalise(reference).split(), normalise(transcript).split()
    if not right:
        return [(word, "equal") for word in said]
    marks: list[Mark] = []
    for chunk in jiwer.process_words(" ".join(right), " ".join(said)).alignments[0]:
        source = (
            right[chunk.ref_start_idx : chunk.ref_end_idx]
            if chunk.type == "delete"
            else said[chunk.hyp_start_idx : chunk.hyp_end_idx]
        )
        marks += [(word, chunk.type) for word in source]
    return marks
