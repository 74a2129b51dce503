"""Error rates by Whisper's normaliser: what it undoes and where, and that metrics tell it."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer
from whisper_normalizer.english import EnglishSpellingNormalizer

from affinity_pool.cli import options
from affinity_pool.study.errors import InputError
from affinity_pool.study.metrics import Normaliser, for_task
from affinity_pool.study.metrics.text import normalise
from affinity_pool.study.metrics.wer import error_rates, marked, word_errors

OTHERS_ENGLISH = EnglishTextNormalizer(EnglishSpellingNormalizer().mapping)
WORDS = ["twenty", "one", "oh", "$5", "million", "colour", "it's", "Mr.", "uh", "[x]", "3,000", "é", "%", "."]
TEXTS = st.lists(st.sampled_from(WORDS) | st.text(max_size=5), max_size=8).map(" ".join)


def whisper(text: str, language: str | None = "en", **given: str) -> str:
    return normalise(text, language, normaliser="whisper", **given)


def test_what_it_undoes_in_english() -> None:
    said = "Uh, Mr. Brown won't pay twenty-one dollars [laughs] for colours, he's sure"
    assert whisper(said) == "mister brown will not pay $21 for colors he is sure"
    assert word_errors(["two colours"], ["2 colors"], "en", normaliser="whisper").count == 0
    assert whisper(said, None) == whisper(said, "en-GB") == whisper(said)


def test_other_languages_lose_less() -> None:
    assert whisper("Zwanzig Farben, (lacht) für 3 €!", "de") == "zwanzig farben für 3"
    assert word_errors(["sábado"], ["sabado"], "es", normaliser="whisper").substitutions == 1


def test_languages_without_spaces_go_by_letters() -> None:
    assert whisper("今天,五点 半", "zh-CN") == "今 天 五 点 半"
    assert whisper("五点", "zh", unit="word") == "五点"
    assert [metric.title for metric in for_task("transcribe", None, "ja", "whisper")] == ["CER", "cCER"]
    assert whisper("He's 21", unit="character") == "h e i s 2 1"


@given(TEXTS)
def test_it_is_what_transformers_has(text: str) -> None:
    assert whisper(text) == " ".join(OTHERS_ENGLISH(text).split())
    assert whisper(text, "fr") == " ".join(BasicTextNormalizer()(text).split())
    assert whisper(text, "th") == " ".join(BasicTextNormalizer(split_letters=True)(text).split())


def test_it_applies_to_error_rates_and_is_in_their_signatures() -> None:
    for named, language, kind in (("wer", "en", "english"), ("wer", "de", "basic"), ("cer", None, "english")):
        for metric in for_task("", named, language, "whisper"):
            assert f"normaliser:whisper-{kind}|whisper-normalizer:" in metric.signature
            assert metric not in for_task("", named, language)
    for named in ("accuracy", "bleu"):
        assert for_task("", named, "en", "whisper") == for_task("", named, "en")
    assert error_rates("en", normaliser="whisper")[0].counts("it's twenty", "it is 20").tolist() == [0, 3]
    assert marked("it's twenty", "it is 21", "whisper") == [("it", "equal"), ("is", "equal"), ("21", "substitute")]


def test_a_reference_of_which_nothing_is_left_is_refused() -> None:
    assert word_errors(["uh"], ["uh"], "en").words == 1
    with pytest.raises(InputError, match="a reference text has no words: 'Uh, \\[noise\\]'"):
        word_errors(["Uh, [noise]"], ["one"], "en", normaliser="whisper")
    with pytest.raises(InputError, match="give its language"):
        error_rates(normaliser="whisper")[0].counts("今天", "今天")


def test_an_unknown_one_is_refused_and_the_command_line_knows_the_same() -> None:
    with pytest.raises(InputError, match="normaliser must be one of plain, whisper, got 'openai'"):
        for_task("transcribe", normaliser="openai")  # type: ignore[arg-type]
    assert get_args(get_args(options.Normaliser)[0]) == get_args(Normaliser)
