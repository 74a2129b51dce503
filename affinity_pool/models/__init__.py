"""Affinity Pooling inside Hugging Face speech language models: ``affinity_pool.patch`` and what it is made of.

Forward pre-hooks do all the work, told by a function around the model's forward what the call is; no model code is
copied.

- ``patch``: the function and its handle; ``sites``, ``settings``: where and how to pool; ``families``: where a model
  keeps what is needed; ``wrappers``: the model inside others; ``refusals``: what cannot work; ``stats``: what a prefill
  did;
- ``forward``: what stands around forward; ``modules``: how all of it is put on and taken off; ``running``: the calls
  under way; ``calls``: what a patch asks of the way in which a family's modules are called;
- ``layers``, ``prefill``: pooling between decoder layers; ``transformers_calls`` and ``kimi_audio`` know how layers are
  called, ``masks``, ``cache`` and ``keys`` what a pooled prefill leaves behind for decoding;
- ``memory``: pooling what a decoder attends to, in encoder-decoder models.
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
