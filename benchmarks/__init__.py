"""The benchmarks: the op against copying its input, the paper's loop and what torch can do without it.

``python -m affinity_pool.benchmarks SUITE`` and ``affinity-pool bench SUITE`` measure a suite (``suites``, ``cpu``,
``gpu``): its cases, each with its data and the check of every output (``cases``), the contenders (``contenders``), and
how they are timed in turns (``measure``, ``timing``). Results files become Markdown in ``tables`` and ``render``.

Only in the repository: ``gpu_check`` does all that takes a GPU, ``without_gpu`` counts and predicts what needs none,
``results`` holds every measurement.
"""

from __future__ import annotations

from .cases import Case, WrongOutputError
from .contenders import CONTENDERS
from .suites import SUITES, run

__all__ = ["CONTENDERS", "SUITES", "Case", "WrongOutputError", "run"]
