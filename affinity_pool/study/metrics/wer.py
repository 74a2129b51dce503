"""Word and character error rates: units substituted, deleted and inserted per unit of the reference.

WER sums errors and words over utterances before it divides. cWER is the mean over utterances of each one's rate, none
counting as more than 1, so that an answer that loops until it is cut off does not swamp the others. Languages written
without spaces get both by characters, see ``text``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

import jiwer
import numpy as np

from .metric import Counts, Metric, share
from .text import Normaliser, Unit, check_reference, form, normalise, unit_of

Mark = tuple[str, str]
"""A word and what is wrong with it: equal (nothing), substitute, insert or delete."""


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


def word_errors(
    references: Sequence[str],
    transcripts: Sequence[str],
    language: str | None = None,
    unit: Unit | None = None,
    normaliser: Normaliser = "plain",
) -> WordErrors:
    """Count errors over pairs of texts, each normalised here.

    Raises:
        InputError: a reference has no words, so no rate can be given.
    """
    unit = unit or unit_of(language)
    for text in references:
        check_reference(text, language, unit, normaliser)
    out = jiwer.process_words(
        [normalise(text, language, unit, normaliser) for text in references],
        [normalise(text, language, unit, normaliser) for text in transcripts],
    )
    return WordErrors(out.substitutions, out.deletions, out.insertions, out.hits + out.substitutions + out.deletions)


def error_rates(
    language: str | None = None, unit: Unit | None = None, normaliser: Normaliser = "plain"
) -> tuple[Metric, Metric]:
    """The rate of all utterances together and the clamped mean; ``unit`` None: as the language is written.

    They are called WER and cWER in tables when they count words and CER and cCER when they count characters. Their
    names tell the same apart only where ``unit`` asked for it, so that test sets in several languages share a column.
    """

    def errors(reference: str, answer: str) -> WordErrors:
        check_reference(reference, language, unit, normaliser)
        return word_errors([reference], [answer], language, unit, normaliser)

    def summed(reference: str, answer: str, question: str = "") -> Counts:
        found = errors(reference, answer)
        return np.array([found.count, found.words], np.float64)

    def clamped(reference: str, answer: str, question: str = "") -> Counts:
        return np.array([min(1.0, errors(reference, answer).rate), 1.0])

    name = "cer" if unit == "character" else "wer"
    title = "CER" if (unit or unit_of(language)) == "character" else "WER"
    how = f"{form(language, unit, normaliser)}|jiwer:{version('jiwer')}"
    return (
        Metric(name, title, "lower", summed, share, f"mean:corpus|{how}"),
        Metric(f"c{name}", f"c{title}", "lower", clamped, share, f"mean:utterances|clamp:1|{how}"),
    )


def marked(reference: str, transcript: str, normaliser: Normaliser = "plain") -> list[Mark]:
    """The words of ``transcript``, and the deleted ones of ``reference`` between them, each with what is wrong."""
    right, said = (normalise(text, normaliser=normaliser).split() for text in (reference, transcript))
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
