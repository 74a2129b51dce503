"""Oracle interventions: how few tokens a unit of speech can do with, at each layer.

Word times cut the audio tokens into units, and at one layer at a time every unit is compressed to a budget by an
operator that knows nothing else: Random Drop, Uniform Drop or Uniform Merge (paper, "oracle interventions"). Silence
between two words is a unit too, so a budget in per cent is one of all audio tokens. The answers' error over layers says
where the model still needs its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ....models import Site
from ....models.settings import Pooling
from ...data import Audio, Utterance
from ...data.alignment import check_source, word_times
from ...data.spans import units
from ...errors import InputError
from ...groups import Span
from ...reductions import planned, quota, random_drop_plan, uniform_drop_plan, uniform_merge_plan
from ...runs.batches import Batch, Prepare
from ...runs.conditions import UNPOOLED, Condition
from ...subject.lslm import Lslm

Operator = Callable[[Sequence[Span], Sequence[int], int], Tensor]
"""Of units, tokens to keep of each, and a seed: where each token goes."""

OPERATORS: dict[str, Operator] = {
    "random-drop": random_drop_plan,
    "uniform-drop": lambda units, keep, seed: uniform_drop_plan(units, keep),
    "uniform-merge": lambda units, keep, seed: uniform_merge_plan(units, keep),
}


@dataclass(frozen=True)
class UnitBudget:
    """What is kept of each unit: so many tokens, or a share."""

    tokens: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str) -> UnitBudget:
        """``"3"`` is three tokens a unit, ``"25%"`` a quarter of the recording's."""
        try:
            if text.endswith("%"):
                share = float(text[:-1]) / 100
                if 0 < share <= 1:
                    return cls(share=share)
            elif (tokens := int(text)) >= 1:
                return cls(tokens=tokens)
        except ValueError:
            pass
        raise InputError(f"budget must be tokens a unit, as '3', or a share up to 100, as '25%', got {text!r}")

    @property
    def title(self) -> str:
        return f"{self.tokens} tokens a unit" if self.share is None else f"{self.share * 100:.4g} % of the tokens"


def check_units(kind: str, source: str | None) -> None:
    """Raise an :class:`InputError` unless there are units of this kind, and word times from there."""
    units((), 1.0, 1, kind)
    check_source(source)


def conditions(
    layers: Sequence[int], operators: Sequence[str], budgets: Sequence[UnitBudget], seed: int
) -> list[Condition]:
    """The unpooled model, then every operator at every budget and layer. ``batch.known`` are the units."""
    for name in operators:
        if name not in OPERATORS:
            raise InputError(f"operator must be one of {', '.join(OPERATORS)}, got {name!r}")
    if len(set(operators)) < len(operators):
        raise InputError(f"operators must be named once each, got {', '.join(operators)}")
    return [
        UNPOOLED,
        *(
            Condition(
                f"{operator}, {budget.title}, layer {layer}",
                {"operator": operator, "budget": budget.title, "layer": layer},
                partial(_pooling, OPERATORS[operator], budget, layer, seed),
            )
            for budget in budgets
            for operator in operators
            for layer in layers
        ),
    ]


def _pooling(operator: Operator, budget: UnitBudget, layer: int, seed: int, batch: Batch) -> Pooling:
    seeds = batch.seeds(seed)  # the same tokens at every layer and in every batch

    def plan(row: int, tokens: int) -> Tensor:
        cut = batch.known[row]
        return operator(cut, quota(cut, tokens=budget.tokens, share=budget.share), seeds[row])

    return Pooling((Site(layer, reduction=planned(plan)),))


def unit_spans(kind: str, source: str | None, lslm: Lslm) -> Prepare:
    """Each recording's units as spans of its audio tokens; see :func:`affinity_pool.study.data.spans.units`."""

    def find(utterance: Utterance, audio: Audio, tokens: int) -> list[Span]:
        words = word_times(utterance, audio, source) if kind == "words" else ()
        return units(words, lslm.token_seconds, tokens, kind)

    return find
