"""Affinity Pooling inside Hugging Face speech language models: ``affinity_pool.patch`` and what it is made of.

Forward pre-hooks on decoder layers do all the work (``patch``), told by a function around the model's forward what the
call is (``forward``, ``calls``); no model code is copied. ``sites`` says where and how strongly to pool, ``families``
where a model keeps what the hooks need, ``modules`` how a model is changed and restored, ``cache`` what a pooled
prefill leaves behind for decoding, ``refusals`` what cannot work; ``wrappers`` finds the model inside others, and
``kimi_audio`` is for one that is called otherwise.
"""

try:
    from transformers.cache_utils import DynamicLayer as _  # noqa: F401
except ImportError as error:
    raise ImportError(
        "affinity_pool.patch needs transformers 4.55 or newer: pip install 'affinity_pool[models]'"
    ) from error

from .families import FAMILIES, UNFIT, Family
from .patch import Handle, patch, unpatch
from .sites import PRESETS, Reduction, Site
from .stats import PrefillStats, SiteStats

__all__ = [
    "FAMILIES",
    "PRESETS",
    "UNFIT",
    "Family",
    "Handle",
    "PrefillStats",
    "Reduction",
    "Site",
    "SiteStats",
    "patch",
    "unpatch",
]
