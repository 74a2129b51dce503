"""Affinity Pooling (arXiv 2604.06871) as one fused op: neighbouring rows that are alike become their mean.

The op of the package affinity_pool, whose modules these are, under a namespace that no other build has. It needs torch
alone; the patch for Hugging Face models is in the package.
"""

from . import reference
from .backends import Backend, backends, use
from .pooling import pool, pool_padded, pool_padded_to, pool_to
from .reference import rows_left
from .results import Closed, Pooled, PooledPadded
from .streaming import AffinityPooler

__all__ = [
    "AffinityPooler",
    "Backend",
    "Closed",
    "Pooled",
    "PooledPadded",
    "backends",
    "pool",
    "pool_padded",
    "pool_padded_to",
    "pool_to",
    "reference",
    "rows_left",
    "use",
]
