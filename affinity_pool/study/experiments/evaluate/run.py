"""Evaluation: what pooling costs in answers, beside other ways to the same number of tokens.

Every choice of sites is answered, and then each baseline at the very counts that Affinity Pooling came to, recording by
recording and site by site: a comparison at equal budget. Of the paper's baselines all are here; ToMe's bipartite merge
is added. Speeding the recording up is one at the input alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ....models import Reduction, Site
from ....models.sites import Positions, resolve
from ...data import Audio
from ...errors import InputError
from ...metrics import Metric
from ...reductions import bipartite_merge, drop_randomly, drop_uniformly, interpolate, merge_uniformly, speed_up
from ...runs import scores
from ...runs.batches import Batch, Record
from ...runs.conditions import UNPOOLED, Condition
from ...subject.lslm import Lslm

SPEED_UP = "speed-up"
REDUCTIONS: dict[str, Callable[[Tensor, Batch, int], Reduction]] = {
    "random-drop": lambda kept, batch, seed: drop_randomly(kept, batch.seeds(seed)),
    "uniform-drop": lambda kept, batch, seed: drop_uniformly(kept),
    "uniform-merge": lambda kept, batch, seed: merge_uniformly(kept),
    "interpolate": lambda kept, batch, seed: interpolate(kept),
    "bipartite-merge": lambda kept, batch, seed: bipartite_merge(kept),
}
BASELINES = (SPEED_UP, *REDUCTIONS)


@dataclass(frozen=True)
class Choice:
    """Sites to evaluate, under the name they were asked for."""

    name: str
    sites: tuple[Site, ...]
    positions: Positions | None = None


def choose(spec: str, depth: int) -> Choice:
    """A preset, a JSON file or a folder that holds one, or ``LAYER:THRESHOLD:WINDOW[,...]`` as ``0:0.9:1,7:0.85:3``."""
    try:
        if ":" in spec and not Path(spec).exists():
            sites, positions = resolve([_site(part) for part in spec.split(",")], depth)
            return Choice(spec, sites, positions)
        sites, positions = resolve(spec, depth)
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(f"sites {spec!r}: {error}") from error
    return Choice(written(sites) if Path(spec).exists() else f"{spec} ({written(sites)})", sites, positions)


def _site(text: str) -> Site:
    try:
        layer, threshold, window = text.split(":")
        numbers = int(layer), float(threshold), int(window)
    except ValueError as error:
        raise ValueError(f"{text!r} is not LAYER:THRESHOLD:WINDOW, as in 7:0.85:3: {error}") from error
    return Site(*numbers)


def written(sites: Sequence[Site]) -> str:
    """Sites as ``--sites`` takes them."""
    return ",".join(f"{site.layer}:{site.threshold:g}:{site.window}" for site in sites)


def conditions(choices: Sequence[Choice], baselines: Sequence[str], seed: int) -> list[Condition]:
    """The unpooled model, then each choice of sites followed by the baselines at its counts."""
    for name in baselines:
        if name not in BASELINES:
            raise InputError(f"baseline must be one of {', '.join(BASELINES)}, got {name!r}")
    if len(set(baselines)) < len(baselines):
        raise InputError(f"baselines must be named once each, got {', '.join(baselines)}")
    if repeated := [name for name, count in Counter(choice.name for choice in choices).items() if count > 1]:
        raise InputError(f"sites {repeated[0]!r} are given twice: give each choice once")
    found = [UNPOOLED]
    for choice in choices:
        facts = {"method": "affinity", "sites": choice.name}
        pooled = Condition(f"affinity at {choice.name}", facts, choice.sites, positions=choice.positions)
        found.append(pooled)
        for name in baselines:
            same = partial(Condition, f"{name} at {choice.name}", {"method": name, "sites": choice.name})
            if name != SPEED_UP:
                sites = partial(_at_same_counts, pooled, REDUCTIONS[name], seed)
                found.append(same(sites, positions=choice.positions))
            elif [site.layer for site in choice.sites] == [0]:
                found.append(same(hear=partial(_sped_up, pooled)))
    return found


def summary(
    lslm: Lslm, plan: Record, records: Sequence[Record], provenance: Record, judge: Metric | None = None
) -> Record:
    """As of any run of conditions, and of each baseline the difference to Affinity Pooling at the same counts."""
    found = scores.summary(lslm, plan, records, provenance, judge)
    found["conditions"].sort(key=lambda condition: plan["conditions"].index(condition["name"]))
    pooled = {c["sites"]: c["name"] for c in found["conditions"] if c.get("method") == "affinity"}
    against = {c["name"]: pooled[c["sites"]] for c in found["conditions"] if c.get("method") in BASELINES}
    compared = {task: scores.score(of, against, judge) for task, of in scores.by_task(records).items()}
    for condition in found["conditions"]:
        if condition["name"] in against:
            condition["against_affinity"] = {
                task: {metric: s.json()["difference"] for metric, s in of[condition["name"]].items()}
                for task, of in compared.items()
            }
    return found


def _at_same_counts(
    pooled: Condition, reduction: Callable[[Tensor, Batch, int], Reduction], seed: int, batch: Batch
) -> list[Site]:
    assert not callable(pooled.sites)
    counts = batch.kept[pooled.name]
    return [
        Site(site.layer, reduction=reduction(torch.tensor(kept), batch, seed))
        for site, kept in zip(pooled.sites, counts, strict=True)
    ]


def _sped_up(pooled: Condition, batch: Batch, row: int) -> Audio:
    return speed_up(batch.audio[row], batch.audio_tokens[row] / batch.kept[pooled.name][0][row])
