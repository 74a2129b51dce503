"""The implementations that every claim about the op is tested on. A new backend is one more line of IMPLEMENTATIONS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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

    def pool(self, x: Tensor, cu_seqlens: Tensor | None = None, **options: Any) -> Pooled:
        return Pooled(*self._home(self.pool_there(self._away(x), self._away(cu_seqlens), **self._all_away(options))))

    def pool_padded(self, x: Tensor, lengths: Tensor | None = None, **options: Any) -> PooledPadded:
        out = self.pool_padded_there(self._away(x), self._away(lengths), **self._all_away(options))
        return PooledPadded(*self._home(out))

    def missing(self) -> str | None:
        """Why it cannot run here, or None if it can."""
        backend = next(b for b in affinity_pool.backends() if b.name == self.name)
        return None if backend.available else f"{backend.name}: {backend.detail}"

    def _away(self, value: Any) -> Any:
        return value.to(self.device) if isinstance(value, Tensor) else value

    def _all_away(self, options: dict[str, Any]) -> dict[str, Any]:
        return {name: self._away(value) for name, value in options.items()}

    @staticmethod
    def _home(result: tuple[Tensor, ...]) -> list[Tensor]:
        return [tensor.cpu() for tensor in result]


IMPLEMENTATIONS = [
    Implementation("cpu", "cpu", affinity_pool.pool, affinity_pool.pool_padded),
    Implementation("reference", "cpu", reference.pool, reference.pool_padded),
]
