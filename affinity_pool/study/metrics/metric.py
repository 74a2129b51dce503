"""What a metric is: counts on each utterance, and a value of the counts summed over utterances.

So the value of a corpus, of a part of it and of a bootstrap sample of it are the same function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.float64]


class Count(Protocol):
    """Counts [k] of one utterance; only a judge looks at the question. NaN: this answer could not be scored."""

    def __call__(self, reference: str, answer: str, question: str = "") -> Counts: ...


@dataclass(frozen=True)
class Metric:
    """A metric, for references in one language. Two with the same name and signature are equal and may be summed."""

    name: str
    title: str
    """As charts and tables say it."""
    better: Literal["lower", "higher"]
    counts: Count = field(compare=False)
    value: Callable[[Counts], Counts] = field(compare=False)
    """From counts summed over utterances, [..., k], to [...]."""
    signature: str
    """How it was computed: what happened to the texts, and the version of the library that counted."""
    percent: bool = field(default=True, compare=False)
    """The value is a share, to be shown times 100; else it is shown as it is."""


def share(counts: Counts) -> Counts:
    """The value of a metric that counts [cases, out of]."""
    return np.asarray(counts[..., 0] / counts[..., 1])
