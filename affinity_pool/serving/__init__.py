"""Affinity Pooling where models are served: inside vLLM (``vllm``, a plug-in), or in front of an engine as it is.

This needs torch alone. :func:`embed` runs a Hugging Face model, needs the extra ``affinity_pool[models]`` for that, and
is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .embedding import Embedded, embed

__all__ = ["Embedded", "embed"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'affinity_pool.serving' has no attribute {name!r}")
    try:
        return getattr(import_module(".embedding", __name__), name)
    except ImportError as error:
        raise ImportError(
            f"affinity_pool.serving.{name} needs transformers 4.55 or newer: pip install 'affinity_pool[models]'"
        ) from error
