"""Error rates: what counts as an error and what does not."""

from __future__ import annotations

import jiwer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from affinity_pool.study.errors import InputError
from affinity_pool.study.metrics.text import normalise
from affinity_pool.study.metrics.wer import error_rates, marked, word_errors

WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "isn't", "well-known", "é", "7"]), max_size=8)
PAIRS = st.lists(st.tuples(WORDS.filter(bool), WORDS), min_size=1, max_size=6)

WER, CWER = error_rates()


def test_case_punctuation_and_spacing_do_not_count() -> None:
    assert normalise(" He’s a  well-known man, ISN'T he? ﬁne… ") == "he's a well-known man isn't he fine"
    assert word_errors(["Five, nine."], ["five  NINE"]).rate == 0


def test_spelling_accents_and_numbers_do_count() -> None:
    assert word_errors(["two colours"], ["2 colors"]).substitutions == 2
    assert word_errors(["sábado"], ["sabado"], "es").substitutions == 1
    assert normalise("1,000.5 km, 5 %") == "1,000.5 km 5"


def test_a_letter_and_its_marks_are_one_however_they_are_encoded() -> None:
    assert normalise("e\u0301te\u0301") == normalise("été")
    assert normalise("Ϊ\u0301") == normalise("ΐ")
    assert normalise("हिन्दी में", "hi") == "हिन्दी में"
    assert normalise("soft\u00adhyphen zero\u200bwidth") == "softhyphen zerowidth"


def test_a_dotless_i_is_turkish_only() -> None:
    assert normalise("IRMAK İZMİR", "tr-TR") == "ırmak izmir"
    assert normalise("IRMAK") == "irmak"
    assert "dotless" in error_rates("tr")[0].signature
    assert error_rates("tr")[0] != WER == error_rates("en")[0]


@given(st.text(), st.sampled_from([None, "tr", "zh", "th"]))
def test_normalised_text_stays_as_it_is(text: str, language: str | None) -> None:
    once = normalise(text, language)
    read = once if language in (None, "tr") else once.replace(" ", "")  # characters stand apart: "0 . 5"
    assert normalise(read, language) == once
    assert once == " ".join(once.split())


def test_languages_without_spaces_are_compared_by_characters() -> None:
    cer, ccer = error_rates("zh-CN")
    assert (cer.name, cer.title, ccer.title) == ("wer", "CER", "cCER")
    assert "unit:character" in cer.signature
    assert cer.counts("今天 天气好。", "今天气好").tolist() == [1, 5]
    assert WER.counts("he sees", "he seas").tolist() == [1, 2]
    assert error_rates("en", "character")[0].counts("he sees", "he seas").tolist() == [1, 6]


def test_a_reference_without_spaces_needs_its_language() -> None:
    assert word_errors(["今天"], ["今天"]).words == 1  # the demo has no other way to go
    with pytest.raises(InputError, match=r"今天.*give its language"):
        WER.counts("今天", "今天")


def test_a_language_is_a_code() -> None:
    with pytest.raises(InputError, match=r"'en' or 'zh-CN', got 'Chinese \(Mandarin\)'"):
        error_rates("Chinese (Mandarin)")


@given(PAIRS)
def test_the_rate_of_summed_counts_is_the_rate_of_the_corpus(pairs: list[tuple[list[str], list[str]]]) -> None:
    references, answers = ([" ".join(words) for words in side] for side in zip(*pairs, strict=True))
    counts = sum(WER.counts(*pair) for pair in zip(references, answers, strict=True))
    assert WER.value(counts) == pytest.approx(jiwer.wer(references, answers), abs=1e-12)
    assert word_errors(references, answers).rate == pytest.approx(jiwer.wer(references, answers), abs=1e-12)


@given(PAIRS)
def test_the_clamped_rate_is_a_mean_over_utterances(pairs: list[tuple[list[str], list[str]]]) -> None:
    texts = [(" ".join(reference), " ".join(answer)) for reference, answer in pairs]
    counts = sum(CWER.counts(*pair) for pair in texts)
    assert CWER.value(counts) == pytest.approx(np.mean([min(1, jiwer.wer(*pair)) for pair in texts]), abs=1e-12)


def test_a_loop_swamps_the_rate_and_not_the_clamped_rate() -> None:
    pairs = [("one two three four", "one two three four")] * 9 + [("one two", "one " * 256)]
    assert WER.value(sum(WER.counts(*pair) for pair in pairs)) == 255 / 38
    assert CWER.value(sum(CWER.counts(*pair) for pair in pairs)) == 0.1


def test_errors_are_told_apart() -> None:
    errors = word_errors(["one two three four", "five"], ["one three four", "six seven"])
    assert (errors.substitutions, errors.deletions, errors.insertions, errors.words) == (1, 1, 1, 5)
    assert errors.rate == 3 / 5


def test_an_empty_transcript_deletes_everything() -> None:
    assert word_errors(["one two"], [""]).rate == 1
    assert CWER.counts("one two", "...").tolist() == [1, 1]


def test_an_empty_reference_is_refused() -> None:
    with pytest.raises(InputError, match=r"no words: '\.\.\.'"):
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
