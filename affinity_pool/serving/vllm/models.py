"""vLLM's model classes with pooling, under the names by which ``engine.take`` registers them.

Each is made when it is asked for: to import a model may touch the device. vLLM remembers what it learned of a class by
the contents of this file and the class's name, so that carries vLLM's version: ``Qwen2Audio...-0.32.0``.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from .architectures import ARCHITECTURES


def __getattr__(name: str) -> Any:
    architecture = name.partition("-")[0]
    if architecture not in ARCHITECTURES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _pooled(architecture)


@cache
def _pooled(architecture: str) -> type:
    from . import seam, special

    entry = ARCHITECTURES[architecture]
    base = getattr(import_module(f"vllm.model_executor.models.{entry.module}"), entry.name)
    wrappers = {**vars(seam), **vars(special)}
    return seam.pooled(base, wrappers[entry.processor], wrappers[entry.model])
