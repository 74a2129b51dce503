"""Affinity Pooling inside Hugging Face speech language models: ``affinity_pool.patch`` and what it is made of.

Forward pre-hooks on decoder layers do all the work; no model code is copied. ``sites`` says where and how strongly to
pool, ``families`` where a model keeps what the hooks need, ``cache`` what a pooled prefill leaves behind for decoding.
"""

try:
    from transformers.cache_utils import DynamicLayer as _  # noqa: F401
except ImportError as error:
    raise ImportError(
        "affinity_pool.patch needs transformers 4.55 or newer: pip install 'affinity_pool[models]'"
    ) from error

from .families import FAMILIES, Family
from .patch import Handle, patch
from .sites import PRESETS, Reduce, Site
from .stats import PrefillStats, SiteStats

__all__ = ["FAMILIES", "PRESETS", "Family", "Handle", "PrefillStats", "Reduce", "Site", "SiteStats", "patch"]
