"""How a family's code calls what a patch hooks: what tells calls apart, and what stands around each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

from torch import nn

from .modules import Hook
from .running import Call, Patched, PooledCall
from .stats import PrefillStats, SiteRecord


class Calls(ABC):
    """The calls of one patched model. A class of these is what a family is given for ``calls``."""

    takes: ClassVar[tuple[str, ...]] = ()
    """Keyword arguments that a patched model's forward takes besides its own."""

    def __init__(self, patched: Patched) -> None:
        self.patched = patched

    @abstractmethod
    def begin(self, kwargs: dict[str, Any]) -> Call:
        """What a forward of the model with these arguments is. One that cannot be pooled is refused, in words."""

    def end(self, call: PooledCall, output: Any) -> Any:
        """What the model's forward returns, made of what it returned."""
        return output

    @abstractmethod
    def hooks(self) -> Iterable[tuple[nn.Module, Hook]]:
        """The pre-hooks that do the work, in the order in which those of one module run."""

    @abstractmethod
    def to_pass(self) -> Iterable[int]:
        """Layers whose hooks a call with something to do must have run."""

    @abstractmethod
    def stats(self, records: list[SiteRecord]) -> PrefillStats:
        """What a prefill did that left these records."""
