"""The modules whose names are for users: what the reference describes, and what has examples."""

from __future__ import annotations

import affinity_pool
import affinity_pool.models
import affinity_pool.serving
import affinity_pool.study.data
import affinity_pool.study.reductions

MODULES = [
    affinity_pool,
    affinity_pool.models,
    affinity_pool.serving,
    affinity_pool.study.data,
    affinity_pool.study.reductions,
]
