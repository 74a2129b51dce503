"""What may stand in for Affinity Pooling at a site: the paper's oracle operators and the baselines it has to beat.

``plans`` says where tokens go when each unit of speech has a budget: the oracle operators. ``by_plan`` carries a plan
out, in the form that a :class:`affinity_pool.Site` takes for its ``reduction``. ``budgets`` makes baselines of the
operators, with the recording as one unit. ``interpolation`` and ``bipartite`` (after ToMe) see the tokens themselves;
``speed`` shortens the recording before the model hears it.
"""

from .bipartite import bipartite_merge
from .budgets import random_drop, uniform_drop, uniform_merge
from .by_plan import planned
from .interpolation import interpolate
from .plans import quota, random_drop_plan, uniform_drop_plan, uniform_merge_plan
from .speed import speed_up

__all__ = [
    "bipartite_merge",
    "interpolate",
    "planned",
    "quota",
    "random_drop",
    "random_drop_plan",
    "speed_up",
    "uniform_drop",
    "uniform_drop_plan",
    "uniform_merge",
    "uniform_merge_plan",
]
