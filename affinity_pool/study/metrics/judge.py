"""Accuracy as a judge sees it: any function of question, reference and answer, such as a call to a language model.

    def judge(question: str, reference: str, answer: str) -> bool | float: ...

``package.module:judge`` names it; modules of the working directory are found. It returns whether the answer is right,
or how right from 0 to 1. The reference comes as it was written, with "|" between several right answers if so.

A judge that fails on one answer (raises, or returns something else) does not end the run: the failure is a warning
that quotes the answer, and its score is NaN, so that intervals and paired differences leave the utterance out and say
over how many they are.
"""

from __future__ import annotations

import os
import pkgutil
import sys
import warnings
from collections.abc import Callable
from functools import wraps

import numpy as np

from ..errors import InputError
from .metric import Counts, Metric, share

Judge = Callable[[str, str, str], float]


def load_judge(spec: str) -> Judge:
    """The function that ``package.module:function`` names, made to return NaN where it fails."""
    if not all(part.strip() for part in spec.partition(":")):
        raise InputError(f"a judge is given as package.module:function, got {spec!r}")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        judge = pkgutil.resolve_name(spec)
    except (Exception, SystemExit) as error:  # importing runs the module, which may raise anything
        raise InputError(f"cannot import the judge {spec!r}: {type(error).__name__}: {error}") from error
    if not callable(judge):
        raise InputError(f"the judge {spec!r} must be a function, but is {type(judge).__name__} {judge!r}")

    @wraps(judge)
    def guarded(question: str, reference: str, answer: str) -> float:
        try:
            found = judge(question, reference, answer)
            score = float("nan") if isinstance(found, str | bytes) else float(found)
            if not 0 <= score <= 1:
                raise ValueError(f"it returned {found!r:.80}, but must return True, False or a number from 0 to 1")
        except (Exception, SystemExit) as error:
            failure = f"{type(error).__name__}: {error}"
            warnings.warn(f"the judge {spec} failed on the answer {answer!r}, left out: {failure}", stacklevel=2)
            return float("nan")
        return score

    return guarded


def judged(judge: Judge, spec: str) -> Metric:
    """The mean of what ``judge``, named ``spec``, gives."""

    def counts(reference: str, answer: str, question: str = "") -> Counts:
        return np.array([judge(question, reference, answer), 1.0])

    return Metric("judge", "judged right", "higher", counts, share, f"judge:{spec}")
