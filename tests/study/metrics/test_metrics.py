"""Metrics of answers and of translations, a judge's verdict, and which of them a task is scored by."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from affinity_pool.study.errors import InputError
from affinity_pool.study.metrics import Metric, for_task, interval, judged, load_judge
from affinity_pool.study.metrics.answers import accuracy
from affinity_pool.study.metrics.translation import bleu, chrf

TOKENS = ["the", "cat", "sat", "on", "a", "mat", ",", ".", "quietly", "3.5", "über"]
SENTENCES = st.lists(st.sampled_from(TOKENS), max_size=12).map(" ".join)
CORPORA = st.lists(st.tuples(SENTENCES.filter(lambda text: any(map(str.isalnum, text))), SENTENCES), min_size=1)
ALL = {metric.name: metric for named in ("wer", "cer", "accuracy", "bleu") for metric in for_task("", named)}


def test_an_answer_is_exact_whatever_its_case_and_punctuation() -> None:
    exact, contained = accuracy()
    assert exact.counts("The Beatles", "the beatles.").tolist() == [1, 1]
    assert exact.counts("The Beatles", "It was the Beatles.").tolist() == [0, 1]
    assert contained.counts("The Beatles", "It was the Beatles.").tolist() == [1, 1]


def test_an_answer_contains_whole_words_next_to_each_other() -> None:
    _, contained = accuracy()
    assert contained.counts("five", "fiveteen")[0] == 0
    assert contained.counts("new york", "new in york")[0] == 0
    assert contained.counts("new york", "")[0] == 0


def test_any_of_several_answers_is_right() -> None:
    exact, contained = accuracy()
    assert [exact.counts("two|2|", said)[0] for said in ("Two", "2", "three", "")] == [1, 1, 0, 0]
    assert contained.counts("two | 2", "there are 2")[0] == 1


def test_answers_without_spaces_are_found_too() -> None:
    exact, contained = accuracy("ja")
    assert contained.counts("東京", "それは東京です。")[0] == 1
    assert exact.counts("東京 都", "東京都。")[0] == 1
    assert "unit:character" in exact.signature


@given(CORPORA)
def test_scores_of_summed_counts_are_the_corpus_scores_of_sacrebleu(corpus: list[tuple[str, str]]) -> None:
    references, answers = map(list, zip(*corpus, strict=True))
    for metric, right in (
        (bleu("en"), sacrebleu.corpus_bleu(answers, [references])),
        (chrf("en"), sacrebleu.corpus_chrf(answers, [references])),
    ):
        counts = sum(metric.counts(*pair) for pair in corpus)
        assert metric.value(counts) == pytest.approx(right.score, abs=1e-9)


def test_chinese_is_cut_as_sacrebleu_cuts_it() -> None:
    references, answers = (
        ["今天天气很好,我们去公园。", "我用 iPhone 打电话"],
        ["今天天气好,我们去公园吧。", "我用手机打电话"],
    )
    counts = sum(map(bleu("zh-CN").counts, references, answers))
    right = sacrebleu.corpus_bleu(answers, [references], tokenize="zh").score
    assert bleu("zh-CN").value(counts) == pytest.approx(right, abs=1e-9)
    assert right > 20


@pytest.mark.parametrize(
    ("language", "tokenizer"),
    [
        (None, "13a"),
        ("de", "13a"),
        ("zh_Hant", "zh"),
        ("th", "char"),
        ("ja", "ja-mecab" if importlib.util.find_spec("MeCab") else "char"),
    ],
)
def test_the_signature_says_how_bleu_was_computed(language: str | None, tokenizer: str) -> None:
    signature = bleu(language).signature
    assert f"tok:{tokenizer}" in signature
    assert "nrefs:1" in signature
    assert f"version:{sacrebleu.__version__}" in signature


@pytest.mark.parametrize("metric", ALL.values(), ids=ALL)
class TestEveryMetric:
    def test_takes_any_answer(self, metric: Metric) -> None:
        for answer in ("", " \n", "!?", "naïve ☕ 今天 \U0001f600", "one\ntwo"):
            counts = metric.counts("one two", answer)
            assert counts.dtype == float
            assert math.isfinite(metric.value(counts))

    def test_is_best_for_the_right_answer_and_worst_for_none(self, metric: Metric) -> None:
        right, none = (float(metric.value(metric.counts("a b c d e", said))) for said in ("a b c d e", ""))
        best = (1.0 if metric.percent else 100.0) if metric.better == "higher" else 0.0
        assert right == pytest.approx(best)
        assert none == (0.0 if metric.better == "higher" else 1.0)

    def test_names_a_reference_that_has_no_words(self, metric: Metric) -> None:
        with pytest.raises(InputError, match=r"no words: '\?!'"):
            metric.counts("?!", "one")


@pytest.mark.parametrize(
    ("task", "metric", "names"),
    [
        ("transcribe", None, ["wer", "cwer"]),
        ("Transcribe the audio.", None, ["wer", "cwer"]),
        ("Translate the speech into Chinese", None, ["bleu", "chrf"]),
        ("first", None, ["exact", "contained"]),
        ("first", "wer", ["wer", "cwer"]),
        ("transcribe", "cer", ["cer", "ccer"]),
        ("transcribe", "accuracy", ["exact", "contained"]),
        ("spanish", "bleu", ["bleu", "chrf"]),
    ],
)
def test_a_task_has_its_metrics_unless_the_utterance_says(task: str, metric: str | None, names: list[str]) -> None:
    assert [found.name for found in for_task(task, metric)] == names


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(InputError, match="one of wer, cer, accuracy, bleu, got 'rouge'"):
        for_task("transcribe", "rouge")


@pytest.fixture
def judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "my_judges.py").write_text(
        "def lenient(question, reference, answer):\n"
        "    if answer == 'boom':\n"
        "        raise TimeoutError('no reply')\n"
        "    if answer == 'exit':\n"
        "        raise SystemExit(2)\n"
        "    odd = {'nan': float('nan'), 'none': None, 'text': '1', 'list': [1], 'minus': -0.1}\n"
        "    return {'half': 0.5, 'seven': 7, **odd}.get(answer, question == 'which?' and reference in answer)\n"
        "number = 3\n"
    )
    (tmp_path / "broken_judges.py").write_text("raise KeyError('API_KEY')")
    (tmp_path / "leaving_judges.py").write_text("import sys; sys.exit('no API_KEY')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in ("my_judges", "broken_judges", "leaving_judges"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("judges")
class TestJudge:
    def test_sees_question_reference_and_answer(self) -> None:
        judge = judged(load_judge("my_judges:lenient"), "my_judges:lenient")
        assert judge.counts("one", "it is one", "which?").tolist() == [1, 1]
        assert judge.counts("one", "it is one", "what?").tolist() == [0, 1]
        assert judge.counts("one", "half", "which?").tolist() == [0.5, 1]
        assert judge.signature == "judge:my_judges:lenient"

    @pytest.mark.parametrize(
        ("answer", "why"),
        [
            ("boom", "TimeoutError: no reply"),
            ("seven", "returned 7"),
            ("exit", "SystemExit: 2"),
            ("nan", "returned nan"),
            ("none", "TypeError"),
            ("text", "returned '1'"),
            ("list", "TypeError"),
            ("minus", "returned -0.1"),
        ],
    )
    def test_leaves_out_an_answer_it_fails_on_and_says_so(self, answer: str, why: str) -> None:
        judge = judged(load_judge("my_judges:lenient"), "my_judges:lenient")
        with pytest.warns(UserWarning, match=f"failed on the answer '{answer}', left out: .*{why}"):
            failed = judge.counts("one", answer, "which?")
        right = judge.counts("one", "one", "which?")
        found = interval(np.stack([right, failed, right]), judge)
        assert (found.value, found.utterances) == (1, 2)

    @pytest.mark.parametrize(
        ("spec", "error"),
        [
            ("my_judges", "package.module:function, got 'my_judges'"),
            ("my_judges:", "package.module:function"),
            ("no_such_module:judge", "No module named 'no_such_module'"),
            ("my_judges:strict", "no attribute 'strict'"),
            ("my_judges:number", "must be a function, but is int 3"),
            ("broken_judges:judge", "KeyError: 'API_KEY'"),
            ("leaving_judges:judge", "SystemExit: no API_KEY"),
            ("../up:judge", "cannot import"),
            ("my_judges:lenient:more", "cannot import"),
        ],
    )
    def test_that_cannot_be_loaded_says_why(self, spec: str, error: str) -> None:
        with pytest.raises(InputError, match=error):
            load_judge(spec)
