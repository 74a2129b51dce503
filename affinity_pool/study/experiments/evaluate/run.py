"""Evaluation: what pooling costs in answers, beside other ways to the same number of tokens.

Every choice of sites is answered, and then each baseline at the very counts that Affinity Pooling came to, recording by
recording and site by site: a comparison at equal budget. Of the paper's baselines all are here; ToMe's bipartite merge
is added. Speeding the recording up is one at the input alone.

Sites that keep shares are also compared with the thresholds at the same layers that were chosen before them, and sites
with proportional attention with the same ones with plain attention. Baselines have the attention of what they are
compared with: a mean then weighs as the tokens in it, and a token that is left of dropped or interpolated ones as one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ....models import Layer, Reduction, Site
from ....models.settings import Pooling
from ...data import Audio
from ...errors import InputError
from ...metrics import Metric
from ...reductions import bipartite_merge, interpolate, random_drop, speed_up, uniform_drop, uniform_merge
from ...runs import scores
from ...runs.batches import Batch
from ...runs.conditions import UNPOOLED, Condition
from ...runs.results import Answer, ConditionsSummary, Facts, Finished
from ...sites import NamedSites, format_sites
from ...subject.lslm import Lslm

THRESHOLDS, SHARES = "affinity", "shares"
CHOICES = (THRESHOLDS, SHARES)
SPEED_UP = "speed-up"
REDUCTIONS: dict[str, Callable[[Tensor, Batch, int], Reduction]] = {
    "random-drop": lambda kept, batch, seed: random_drop(kept, batch.seeds(seed)),
    "uniform-drop": lambda kept, batch, seed: uniform_drop(kept),
    "uniform-merge": lambda kept, batch, seed: uniform_merge(kept),
    "interpolate": lambda kept, batch, seed: interpolate(kept),
    "bipartite-merge": lambda kept, batch, seed: bipartite_merge(kept),
}
BASELINES = (SPEED_UP, *REDUCTIONS)


def conditions(choices: Sequence[NamedSites], baselines: Sequence[str], seed: int) -> list[Condition]:
    """The unpooled model, then each choice of sites followed by the baselines at its counts."""
    for name in baselines:
        if name not in BASELINES:
            raise InputError(f"baseline must be one of {', '.join(BASELINES)}, got {name!r}")
    if len(set(baselines)) < len(baselines):
        raise InputError(f"baselines must be named once each, got {', '.join(baselines)}")
    if repeated := [name for name, count in Counter(choice.name for choice in choices).items() if count > 1]:
        raise InputError(f"sites {repeated[0]!r} are given twice: give each choice once")
    found = [UNPOOLED]
    for at, choice in enumerate(choices):
        facts = {"method": _method(choice), **_told(choice)}
        if beside := _beside(choice, choices[:at]):
            facts["beside"] = beside.name
        pooled = Condition(f"affinity at {choice.name}", facts, choice.pooling)
        found.append(pooled)
        for name in baselines:
            same = partial(Condition, f"{name} at {choice.name}", {"method": name, **_told(choice)})
            if name != SPEED_UP:
                found.append(same(partial(_at_same_counts, pooled, REDUCTIONS[name], seed)))
            elif _layers(choice) == [0]:
                found.append(same(altered=partial(_sped_up, pooled)))
    return found


def _told(choice: NamedSites) -> Facts:
    return {"sites": choice.name, "attention": choice.pooling.attention}


def _method(choice: NamedSites) -> str:
    return THRESHOLDS if all(site.keep is None for site in choice.pooling.sites) else SHARES


def _layers(choice: NamedSites) -> list[Layer]:
    return [site.layer for site in choice.pooling.sites]


def _beside(choice: NamedSites, earlier: Sequence[NamedSites]) -> NamedSites | None:
    """What a choice is compared with, of those before it.

    Of proportional attention the same sites with plain attention, if they are there; of shares the last thresholds at
    the same layers and with the same attention.
    """
    if plain := [one for one in earlier if one.pooling == replace(choice.pooling, attention="plain")]:
        return plain[0]
    same = [
        one
        for one in earlier
        if _method(one) == THRESHOLDS
        and _layers(one) == _layers(choice)
        and one.pooling.attention == choice.pooling.attention
    ]
    return same[-1] if same and _method(choice) == SHARES else None


def summarise(lslm: Lslm, run: Finished[Answer], judge: Metric | None = None) -> ConditionsSummary:
    """As of any run of conditions, and the differences to Affinity Pooling: of each baseline to that at the same
    counts, of shares to the thresholds beside them, for which the shares that leave as many tokens are told, of
    proportional attention to plain."""
    summary = scores.summarise(lslm, run, judge)
    order: list[str] = run.settings["conditions"]
    summary["conditions"].sort(key=lambda condition: order.index(condition["name"]))
    pooled = {c["sites"]: c["name"] for c in summary["conditions"] if c.get("method") in CHOICES}
    against = {
        c["name"]: pooled[c.get("beside", c["sites"])]
        for c in summary["conditions"]
        if c.get("method") in BASELINES or "beside" in c
    }
    answers = scores.by_condition(run.rows)
    compared = {task: scores.score(of, against, judge) for task, of in scores.by_task(run.rows).items()}
    for condition in summary["conditions"]:
        if condition.get("method") == THRESHOLDS:
            condition["as_shares"] = format_sites(scores.as_shares(answers[condition["name"]]))
        if condition["name"] in against:
            condition["against_affinity"] = {
                task: {metric: s.json()["difference"] for metric, s in of[condition["name"]].items()}
                for task, of in compared.items()
            }
    return summary


def _at_same_counts(
    pooled: Condition, reduction: Callable[[Tensor, Batch, int], Reduction], seed: int, batch: Batch
) -> Pooling:
    assert isinstance(pooled.pooling, Pooling)
    at_counts = zip(pooled.pooling.sites, batch.kept[pooled.name], strict=True)
    sites = tuple(Site(site.layer, reduction=reduction(torch.tensor(kept), batch, seed)) for site, kept in at_counts)
    return replace(pooled.pooling, sites=sites)


def _sped_up(pooled: Condition, batch: Batch, row: int) -> Audio:
    return speed_up(batch.audio[row], batch.audio_tokens[row] / batch.kept[pooled.name][0][row])
