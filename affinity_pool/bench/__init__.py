"""The benchmarks: the op against copying its input, the paper's loop and what torch can do without it.

:func:`run` measures a suite and returns (and writes) its results with their provenance; :mod:`.table` renders results
as the tables of README. Also ``python -m affinity_pool.bench SUITE`` and ``affinity-pool bench``.
"""

from __future__ import annotations

from .cases import Case, WrongOutputError
from .contenders import CONTENDERS
from .sweep import SUITES, run

__all__ = ["CONTENDERS", "SUITES", "Case", "WrongOutputError", "run"]
