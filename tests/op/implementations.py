"""The implementations that every claim about the op is tested on. A new backend is one more line of IMPLEMENTATIONS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import emulator
import torch
from torch import Tensor

import affinity_pool
from affinity_pool import Pooled, PooledPadded, reference


@dataclass(frozen=True)
class Implementation:
    """The four functions with the public signatures, on a device; results come back to the CPU."""

    name: str
    device: str
    functions: Any
    """What has ``pool``, ``pool_padded``, ``pool_to`` and ``pool_padded_to``, there."""
    missing: Callable[[], str | None]
    """Why it cannot run here, or None if it can."""

    def pool(self, x: Tensor, cu_seqlens: Tensor | None = None, **options: Any) -> Pooled:
        return Pooled(*self._call("pool", x, cu_seqlens, **options))

    def pool_padded(self, x: Tensor, lengths: Tensor | None = None, **options: Any) -> PooledPadded:
        return PooledPadded(*self._call("pool_padded", x, lengths, **options))

    def pool_to(self, x: Tensor, keep: Any, cu_seqlens: Tensor | None = None, **options: Any) -> Pooled:
        return Pooled(*self._call("pool_to", x, keep, cu_seqlens, **options))

    def pool_padded_to(self, x: Tensor, keep: Any, lengths: Tensor | None = None, **options: Any) -> PooledPadded:
        return PooledPadded(*self._call("pool_padded_to", x, keep, lengths, **options))

    def _call(self, function: str, *arguments: Any, **options: Any) -> list[Tensor]:
        out = getattr(self.functions, function)(*map(self._away, arguments), **self._all_away(options))
        return self._home(out)

    def _away(self, value: Any) -> Any:
        return there(value, self.device) if isinstance(value, Tensor) else value

    def _all_away(self, options: dict[str, Any]) -> dict[str, Any]:
        return {name: self._away(value) for name, value in options.items()}

    @staticmethod
    def _home(result: tuple[Tensor, ...]) -> list[Tensor]:
        return [tensor.cpu() for tensor in result]


def there(value: Tensor, device: str) -> Tensor:
    """The tensor on a device, with its strides and its storage offset; ``.to`` would lay its elements side by side."""
    if value.device.type == torch.device(device).type or value.layout != torch.strided:
        return value.to(device)
    flat = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage())
    return flat.to(device).as_strided(value.shape, value.stride(), value.storage_offset())


class Used:
    """The public functions while ``affinity_pool.use(name)``."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, function: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with affinity_pool.use(self.name):
                return getattr(affinity_pool, function)(*arguments, **options)

        return call


def missing_backend(name: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        entry = next(b for b in affinity_pool.backends() if b.name == name)
        return None if entry.available else f"{name}: {entry.detail}"

    return missing


IMPLEMENTATIONS = [
    Implementation("cpu", "cpu", affinity_pool, missing_backend("cpu")),
    Implementation("cuda", "cuda", Used("cuda"), missing_backend("cuda")),
    Implementation("triton", "cuda", Used("triton"), missing_backend("triton")),
    # The source of the CUDA kernels, executed here.
    Implementation("emulator", "cpu", emulator, emulator.missing),
    Implementation("reference", "cpu", reference, lambda: None),
]
