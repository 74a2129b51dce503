"""Word error rate: what counts as an error and what does not."""

from __future__ import annotations

import pytest

from affinity_pool.study import InputError
from affinity_pool.study.metrics.wer import marked, normalise, word_errors


def test_case_punctuation_and_spacing_do_not_count() -> None:
    assert normalise(" He’s a  well-known man, ISN'T he? ﬁne… ") == "he's a well-known man isn't he fine"
    assert word_errors(["Five, nine."], ["five  NINE"]).rate == 0


def test_spelling_and_numbers_do_count() -> None:
    assert word_errors(["two colours"], ["2 colors"]).substitutions == 2


def test_errors_are_summed_over_utterances_before_dividing() -> None:
    errors = word_errors(["one two three four", "five"], ["one three four", "six seven"])
    assert (errors.substitutions, errors.deletions, errors.insertions, errors.words) == (1, 1, 1, 5)
    assert errors.rate == 3 / 5


def test_an_empty_transcript_deletes_everything() -> None:
    assert word_errors(["one two"], [""]).rate == 1


def test_an_empty_reference_is_refused() -> None:
    with pytest.raises(InputError, match="no words"):
        word_errors(["one", "..."], ["one", "two"])


def test_marks_tell_wrong_missing_and_extra_words_apart() -> None:
    assert marked("one two three four five", "one three fore five six") == [
        ("one", "equal"),
        ("two", "delete"),
        ("three", "equal"),
        ("fore", "substitute"),
        ("five", "equal"),
        ("six", "insert"),
    ]
    assert marked("", "one") == [("one", "equal")]
    assert marked("one", "") == [("one", "delete")]
