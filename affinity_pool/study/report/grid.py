"""Conditions that differ in a few settings, such as layer, threshold and window: looked up by these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ..runs.results import ConditionResult, ConditionsSummary, MetricResult, ScoreResult


@dataclass(frozen=True)
class Grid:
    """What a run over one task found, by the settings that tell its conditions apart."""

    task: str
    metrics: Sequence[MetricResult]
    """The headline first."""
    unpooled: Mapping[str, ScoreResult]
    """By metric."""
    settings: tuple[str, ...]
    cells: Mapping[tuple[Any, ...], ConditionResult]
    """By the values of the settings."""

    @classmethod
    def of(cls, summary: ConditionsSummary, *settings: str) -> Grid:
        """By these keys of the conditions, in this order."""
        (task,) = summary["metrics"]
        unpooled, *pooled = summary["conditions"]
        cells = {tuple(cast(Mapping[str, Any], found)[name] for name in settings): found for found in pooled}
        return cls(task, summary["metrics"][task], unpooled["scores"][task], settings, cells)

    @property
    def headline(self) -> MetricResult:
        return self.metrics[0]

    def axis(self, setting: str) -> list[Any]:
        """The values of a setting: numbers rising, names in the order of the conditions."""
        values = list(dict.fromkeys(key[self.settings.index(setting)] for key in self.cells))
        return values if any(isinstance(value, str) for value in values) else sorted(values)

    def score(self, *key: Any, metric: MetricResult | None = None) -> ScoreResult:
        """Of one condition; None: by the headline."""
        return self.cells[key]["scores"][self.task][(metric or self.headline)["name"]]

    def retention(self, *key: Any) -> float:
        """Audio tokens left after the last site."""
        return self.cells[key]["retention"][-1]
