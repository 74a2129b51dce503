"""How right an answer is, and how far the figure can be trusted.

``metric`` says what a metric is; ``wer``, ``answers``, ``judge`` and ``translation`` are the metrics and ``tasks`` says
which a task is scored by. ``text`` is how texts are brought to the same form first, and ``whisper`` how published error
rates do it. ``bootstrap`` gives intervals of
values and of differences between two systems.
"""

from .bootstrap import Interval, interval, paired
from .judge import judged, load_judge
from .metric import Counts, Metric, share
from .tasks import METRICS, for_task
from .text import Normaliser

__all__ = [
    "METRICS",
    "Counts",
    "Interval",
    "Metric",
    "Normaliser",
    "for_task",
    "interval",
    "judged",
    "load_judge",
    "paired",
    "share",
]
