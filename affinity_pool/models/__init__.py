"""Affinity Pooling inside Hugging Face speech language models: ``affinity_pool.patch`` and what it is made of.

Forward pre-hooks on decoder layers do all the work, told by a function around the model's forward what the call is; no
model code is copied.

- ``patch``: the function and its handle; ``sites``: where and how to pool; ``families``: where a model keeps what is
  needed; ``wrappers``: the model inside others; ``refusals``: what cannot work; ``stats``: what a prefill did;
- ``forward``: the hooks, and what stands around forward; ``modules``: how they are put on and taken off; ``running``:
  the calls under way; ``prefill``: pooling at a site;
- ``calls``: what a patch asks of the way in which a family calls its layers; ``transformers_calls`` and ``kimi_audio``
  answer, with ``masks``, ``cache`` and ``keys`` for what a pooled prefill leaves behind for decoding.
"""

try:
    from transformers.cache_utils import DynamicLayer as _  # noqa: F401
except ImportError as error:
    raise ImportError(
        "affinity_pool.patch needs transformers 4.55 or newer: pip install 'affinity_pool[models]'"
    ) from error

from .families import FAMILIES, UNFIT, Family
from .patch import Handle, patch, unpatch
from .settings import PRESETS
from .sites import MEMORY, Layer, Reduction, Site
from .stats import PrefillStats, SiteStats

__all__ = [
    "FAMILIES",
    "MEMORY",
    "PRESETS",
    "UNFIT",
    "Family",
    "Handle",
    "Layer",
    "PrefillStats",
    "Reduction",
    "Site",
    "SiteStats",
    "patch",
    "unpatch",
]
