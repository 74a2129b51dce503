"""Affinity Pooling (arXiv 2604.06871) as one fused op, and the tools that put it to work in speech language models.

The op needs torch alone. :func:`patch` needs the extra ``affinity_pool[models]`` and is imported on first use.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any


def _needs_torch() -> bool:
    """Unless this process is the command line's, and asked for a completion by a shell, for its help or its version.

    To import torch takes more than a second, the rest of the command line 0.1 s.
    """
    module = ["-m", __name__]
    program = sys.orig_argv[-3:-1] == module or os.path.basename(sys.argv[0]) in ("affinity-pool", "affinity-pool.exe")
    return not (program and ("_AFFINITY_POOL_COMPLETE" in os.environ or sys.argv[1:] in (["--help"], ["--version"])))


if TYPE_CHECKING or _needs_torch():
    from . import reference
    from .backends import Backend, backends, use
    from .pooling import pool, pool_padded, pool_padded_to, pool_to
    from .reference import rows_left
    from .results import Closed, Pooled, PooledPadded
    from .streaming import AffinityPooler

if TYPE_CHECKING:
    from .models.patch import patch, unpatch
    from .models.sites import Site

__version__ = "0.1.0"
__all__ = [
    "AffinityPooler",
    "Backend",
    "Closed",
    "Pooled",
    "PooledPadded",
    "Site",
    "backends",
    "patch",
    "pool",
    "pool_padded",
    "pool_padded_to",
    "pool_to",
    "reference",
    "rows_left",
    "unpatch",
    "use",
]

_FROM_MODELS = ("Site", "patch", "unpatch")


def __getattr__(name: str) -> Any:
    if name not in _FROM_MODELS:
        raise AttributeError(f"module 'affinity_pool' has no attribute {name!r}")
    try:
        return getattr(import_module(".models", __name__), name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"affinity_pool.{name} needs {error.name}: pip install 'affinity_pool[models]'", name=error.name
        ) from error
