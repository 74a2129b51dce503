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
    """``pool`` and ``pool_padded`` with the public signatures, on a device; results come back to the CPU."""

    name: str
    device: str
    pool_there: Callable[..., Pooled]
    pool_padded_there: Callable[..., PooledPadded]
    missing: Callable[[], str | None]
    """Why it cannot run here, or None if it can."""

    def pool(self, x: Tensor, cu_seqlens: Tensor | None = None, **options: Any) -> Pooled:
        return Pooled(*self._home(self.pool_there(self._away(x), self._away(cu_seqlens), **self._all_away(options))))

    def pool_padded(self, x: Tensor, lengths: Tensor | None = None, **options: Any) -> PooledPadded:
        out = self.pool_padded_there(self._away(x), self._away(lengths), **self._all_away(options))
        return PooledPadded(*self._home(out))

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


def backend(name: str, device: str) -> Implementation:
    """The public functions while ``affinity_pool.use(name)``."""

    def used(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with affinity_pool.use(name):
                return function(*arguments, **options)

        return call

    def missing() -> str | None:
        entry = next(b for b in affinity_pool.backends() if b.name == name)
        return None if entry.available else f"{name}: {entry.detail}"

    return Implementation(name, device, used(affinity_pool.pool), used(affinity_pool.pool_padded), missing)


IMPLEMENTATIONS = [
    Implementation("cpu", "cpu", affinity_pool.pool, affinity_pool.pool_padded, backend("cpu", "cpu").missing),
    backend("cuda", "cuda"),
    backend("triton", "cuda"),
    # The source of the CUDA kernel, executed here.
    Implementation("emulator", "cpu", emulator.pool, emulator.pool_padded, emulator.missing),
    Implementation("reference", "cpu", reference.pool, reference.pool_padded, lambda: None),
]
