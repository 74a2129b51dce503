"""BLEU and chrF as sacrebleu computes them, on the texts as they are and one reference each.

Both are functions of n-gram counts summed over utterances, so the value of a sum of counts is sacrebleu's corpus score.
BLEU's tokenizer depends on the language of the reference: ``zh`` for Chinese, ``ja-mecab`` for Japanese if installed
(``pip install sacrebleu[ja]``), ``char`` for it otherwise and for other languages written without spaces, and ``13a``.
The signature says which it was: scores with different tokenizers cannot be compared.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from .metric import Counts, Metric
from .text import SPACELESS, check_reference, primary


def bleu(language: str | None = None) -> Metric:
    """Counts: lengths of answer and reference, then matching and all n-grams of the answer, n from 1 to 4."""
    scorer = _bleu(primary(language))

    def counts(reference: str, answer: str, question: str = "") -> Counts:
        check_reference(reference, language)
        found = scorer.corpus_score([answer], [[reference]])
        return np.array([found.sys_len, found.ref_len, *found.counts, *found.totals], np.float64)

    def score(answer: int, reference: int, *ngrams: int) -> float:
        right, all_ = list(ngrams[:4]), list(ngrams[4:])
        return float(BLEU.compute_bleu(right, all_, answer, reference, scorer.smooth_method).score)

    return Metric("bleu", "BLEU", "higher", counts, _each(score), _signature(scorer), percent=False)


def chrf(language: str | None = None) -> Metric:
    """Counts: n-grams of the answer, of the reference, and in both, for each n from 1 to 6."""
    scorer = CHRF()

    # sacrebleu has no public way to these counts. Its own significance tests go through the same two methods.
    def counts(reference: str, answer: str, question: str = "") -> Counts:
        check_reference(reference, language)
        return np.array(scorer._extract_corpus_statistics([answer], [[reference]])[0], np.float64)

    def score(*ngrams: int) -> float:
        return float(scorer._compute_score_from_stats(list(ngrams)).score)

    return Metric("chrf", "chrF", "higher", counts, _each(score), _signature(scorer), percent=False)


def _bleu(language: str | None) -> BLEU:
    if language in {"zh", "cmn", "yue", "wuu"}:
        return BLEU(tokenize="zh")
    if language == "ja":
        try:
            return BLEU(tokenize="ja-mecab")
        except RuntimeError:  # MeCab is not installed
            return BLEU(tokenize="char")
    return BLEU(tokenize="char" if language in SPACELESS else "13a")


def _each(score: Callable[..., float]) -> Callable[[Counts], Counts]:
    """``score`` of the whole numbers in each row; sacrebleu prints them, and cannot print floats."""
    return lambda counts: np.apply_along_axis(lambda row: score(*map(int, row)), -1, counts)


def _signature(scorer: BLEU | CHRF) -> str:
    scorer.corpus_score(["."], [["."]])  # only then does it know that there is one reference each
    return str(scorer.get_signature())
