"""Choose sites, thresholds and windows for a model from recordings alone: no texts, no training.

What is judged is agreement with the unpooled model: how much of its greedy answer changes, or how far the distribution
of the first token moves. Four steps, each a run of its own:

1. ``curves``: one prefill a recording tells how many tokens every threshold would leave at every layer, so that the
   thresholds tried next leave known shares whatever the model's similarities are like;
2. ``alone``: pooling at one layer at a time, at each of those shares: what every layer can bear;
3. ``together``: pairs of an input site and a deeper one, and single sites, that the first two steps promise to meet the
   budget with the least disagreement; the best of those that do meet it is chosen;
4. ``shares``: for each of those that meet it the shares that leave as many tokens in all, as ``Site(layer, keep=...)``
   takes them; of these, too, the best within the budget is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein

from ....models import Site
from ....models.settings import FILE, Attention, Pooling, sites_json
from ....pooling import pool_padded
from ...efficiency.flops import relative_prefill_flops
from ...errors import InputError
from ...metrics import Normaliser
from ...metrics.text import normalise
from ...runs import folders
from ...runs.batches import Batch, Work
from ...runs.conditions import UNPOOLED, Answering, Condition
from ...runs.results import Answer, CalibrationSummary, Facts, Finished, TokensLeft, TrialResult
from ...runs.scores import as_shares, by_condition, relative_flops, retention
from ...sites import format_sites
from ...subject.lslm import Lslm

Criterion = Literal["answer", "first-token"]

# Cosines of neighbours crowd near 1 at some models' input and spread wide at others': steps even in arccos cover both.
THRESHOLDS = tuple(round(float(np.cos(angle)), 4) for angle in np.linspace(0.05, 1.5, 30))
SHARES = (0.9, 0.8, 0.7, 0.5, 0.35, 0.25, 0.15, 0.08)
MERGES = 0.98  # a site that leaves more does next to nothing
TOLERANCE = 0.01  # disagreement that still counts as none, in the picture of what layers bear
TRIED = 16  # combinations measured in the last step
ALIKE = 2  # of them at the same layers


@dataclass(frozen=True)
class CostBudget:
    """What the pooled model may cost."""

    flops: float | None = None
    """Decoder prefill, as a share of the unpooled model's."""
    retention: float | None = None
    """Audio tokens left after the last site."""

    def __post_init__(self) -> None:
        given = [value for value in (self.flops, self.retention) if value is not None]
        if len(given) != 1 or not 0 < given[0] < 1:
            raise InputError(
                "give one budget, either flops or retention (--flops, --retention), as a share between 0 and 1, got "
                f"flops={self.flops}, retention={self.retention}"
            )

    def met(self, trial: Trial) -> bool:
        return trial.flops <= self.flops if self.flops is not None else trial.retention <= (self.retention or 0)

    def __str__(self) -> str:
        if self.flops is not None:
            return f"at most {self.flops:.0%} of the decoder's prefill FLOPs"
        return f"at most {self.retention:.0%} of the audio tokens left"


@dataclass(frozen=True)
class Trial:
    """Sites, and what they were measured (or, before the last step, are expected) to do."""

    sites: tuple[Site, ...]
    retention: float
    flops: float
    disagreement: float

    @property
    def name(self) -> str:
        return format_sites(self.sites)

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(site.layer for site in self.sites if isinstance(site.layer, int))


@dataclass(frozen=True)
class Curves:
    """Tokens that every window and threshold would leave at every layer: the work of step 1."""

    lslm: Lslm
    windows: Sequence[int]

    def __call__(self, batch: Batch) -> list[list[TokensLeft]]:
        mask = batch.inputs["attention_mask"]
        lengths, audio = mask.sum(1, dtype=torch.int32), self.lslm.audio_positions(batch.inputs)
        left: list[np.ndarray] = []  # [layer][window and threshold, row]

        def count(hidden: torch.Tensor) -> None:
            found = [
                pool_padded(
                    hidden, lengths, mergeable=audio, threshold=threshold, window=window, left_padded=True
                ).lengths
                for window, threshold in product(self.windows, THRESHOLDS)
            ]
            merged = lengths - torch.stack(found)
            left.append((audio.sum(1) - merged).cpu().numpy())

        with self.lslm.hidden_states(count):
            self.lslm.generate(batch.inputs, longest=1)
        return [
            [
                {
                    "utterance": utterance.id,
                    "audio_tokens": batch.audio_tokens[row],
                    "left": [counts[:, row].tolist() for counts in left[:-1]],  # the last is after the last layer
                }
            ]
            for row, utterance in enumerate(batch.utterances)
        ]


def candidates(curves: Sequence[TokensLeft], windows: Sequence[int], layers: Sequence[int]) -> list[Site]:
    """Of each layer and window the thresholds that leave about each of the shares; equal ones once."""
    left = np.array([row["left"] for row in curves]).sum(0) / sum(row["audio_tokens"] for row in curves)
    by_window = left.reshape(left.shape[0], len(windows), len(THRESHOLDS))
    sites = []
    for layer, (at, window) in product(layers, enumerate(windows)):
        shares = by_window[layer, at]
        chosen = {int(np.abs(shares - wanted).argmin()) for wanted in SHARES}
        sites += [Site(layer, THRESHOLDS[i], window) for i in sorted(chosen) if shares[i] < MERGES]
    return sites


def conditions(trials: Sequence[Sequence[Site]], attention: Attention) -> list[Condition]:
    """The unpooled model, whose answers are to be kept, and each trial."""
    named = [(format_sites(sites), Pooling(tuple(sites), attention=attention)) for sites in trials]
    return [UNPOOLED, *(Condition(name, {"sites": name}, pooling) for name, pooling in named)]


def measured(
    lslm: Lslm, trials: Sequence[Sequence[Site]], answers: Sequence[Answer], criterion: Criterion
) -> list[Trial]:
    """What the trials of a run did, in their order."""
    groups = by_condition(answers)
    unpooled = groups[UNPOOLED.name]
    return [
        Trial(
            tuple(sites),
            retention(of)[-1],
            relative_flops(lslm, of),
            float(np.mean([disagreement(one, other, criterion) for one, other in zip(unpooled, of, strict=True)])),
        )
        for sites in trials
        if (of := groups[format_sites(sites)])
    ]


def disagreement(unpooled: Answer, pooled: Answer, criterion: Criterion) -> float:
    """Characters to change in the unpooled answer, as a share of it and 1 at most; or the first token's KL in nats."""
    if criterion == "first-token":
        return float(pooled["first_token_kl"])
    right, said = (normalise(one["answer"], normaliser=one["normaliser"]) for one in (unpooled, pooled))
    return min(1.0, Levenshtein.distance(right, said) / max(1, len(right)))


def promising(
    alone: Sequence[Trial], budget: CostBudget, config: Any, text_tokens: float, audio_tokens: float
) -> list[tuple[Site, ...]]:
    """Single sites and pairs with the input that should meet the budget, the least expected disagreement first.

    Expected of a pair: both disagreements added, and of the tokens what each site alone leaves, whichever is less. Of
    each choice of layers two are tried at most: thresholds and windows next to each other do much the same.
    """
    at_input = [trial for trial in alone if trial.layers[0] == 0]
    deeper = [trial for trial in alone if trial.layers[0] > 0]
    pairs = []
    for first, second in product(at_input, deeper):
        layer, left = second.layers[0], min(first.retention, second.retention)
        cost = relative_prefill_flops(config, text_tokens, audio_tokens, {0: first.retention, layer: left})
        sites = (*first.sites, *second.sites)
        pairs.append(Trial(sites, left, cost, first.disagreement + second.disagreement))
    expected = [trial for trial in (*alone, *pairs) if budget.met(trial)]
    tried: dict[tuple[int, ...], list[tuple[Site, ...]]] = {}
    for trial in sorted(expected, key=lambda trial: (trial.disagreement, trial.flops)):
        of_layers = tried.setdefault(trial.layers, [])
        if len(of_layers) < ALIKE:
            of_layers.append(trial.sites)
    return [sites for of_layers in tried.values() for sites in of_layers][:TRIED]


def best(trials: Sequence[Trial], budget: CostBudget) -> Trial | None:
    """The least disagreement within the budget, the cheaper of equals; None if none meets it."""
    within = [trial for trial in trials if budget.met(trial)]
    return min(within, key=lambda trial: (trial.disagreement, trial.flops), default=None)


Step = Callable[[str, Facts, Work[Any]], Finished[Any]]
"""Runs a step in all processes, by its name, options and work."""


@dataclass(frozen=True)
class Found:
    """The end of a search."""

    chosen: Trial | None
    """None: nothing that was tried meets the budget."""
    chosen_shares: Trial | None
    """The same, of sites that keep shares."""
    alone: Sequence[Trial]
    together: Sequence[Trial]
    pairs: Sequence[tuple[Trial, Trial]]
    """Thresholds within the budget, and the shares that leave as many tokens."""
    last: Finished[Answer]
    """The run of the last step of thresholds."""


@dataclass(frozen=True)
class Search:
    """What is looked for, and where."""

    lslm: Lslm
    budget: CostBudget
    criterion: Criterion
    layers: Sequence[int]
    windows: Sequence[int]
    longest: int
    normaliser: Normaliser = "plain"
    """Of the answers that are compared."""
    attention: Attention = "plain"

    def run(self, step: Step) -> Found:
        """All the steps; each one's results decide what the next one tries."""
        config = self.lslm.config
        curves: Finished[TokensLeft] = step(
            "curves", {"thresholds": THRESHOLDS, "windows": self.windows}, Curves(self.lslm, self.windows)
        )
        sites = [(site,) for site in candidates(curves.rows, self.windows, self.layers)]
        at_one_layer = self._answer(step, "alone", sites).rows
        alone = measured(self.lslm, sites, at_one_layer, self.criterion)

        unpooled = by_condition(at_one_layer)[UNPOOLED.name]
        text = float(np.mean([answer["text_tokens"] for answer in unpooled]))
        audio = float(np.mean([answer["audio_tokens"] for answer in unpooled]))
        trials = promising(alone, self.budget, config, text, audio)
        last = self._answer(step, "together", trials)
        together = measured(self.lslm, trials, last.rows, self.criterion)
        pairs = self._beside_shares(step, [trial for trial in together if self.budget.met(trial)], last.rows)
        kept = [shares for _, shares in pairs]
        return Found(best(together, self.budget), best(kept, self.budget), alone, together, pairs, last)

    def _beside_shares(
        self, step: Step, trials: Sequence[Trial], answers: Sequence[Answer]
    ) -> list[tuple[Trial, Trial]]:
        """Each trial, answered by ``answers``, with the one of shares that leave as many tokens."""
        if not trials:
            return []
        groups = by_condition(answers)
        shares = [as_shares(groups[trial.name]) for trial in trials]
        once = list(dict.fromkeys(shares))  # trials may leave the same
        found = measured(self.lslm, once, self._answer(step, "shares", once).rows, self.criterion)
        of = dict(zip(once, found, strict=True))
        return [(trial, of[sites]) for trial, sites in zip(trials, shares, strict=True)]

    def _answer(self, step: Step, name: str, trials: Sequence[Sequence[Site]]) -> Finished[Answer]:
        options = {
            "trials": [format_sites(sites) for sites in trials],
            "longest": self.longest,
            "criterion": self.criterion,
            "normaliser": self.normaliser,
            "attention": self.attention,
        }
        first_token = self.criterion == "first-token"
        longest = 1 if first_token else self.longest
        asked = conditions(trials, self.attention)
        work = Answering(self.lslm, asked, longest, normaliser=self.normaliser, first_token=first_token)
        return step(name, options, work)


def check_criterion(criterion: str) -> Criterion:
    """One of those there are."""
    if criterion not in get_args(Criterion):
        raise InputError(f"criterion must be one of {', '.join(get_args(Criterion))}, got {criterion!r}")
    return cast(Criterion, criterion)


def summarise(search: Search, found: Found, data: str, *, shares: bool = False) -> CalibrationSummary:
    """What was looked for, tried and chosen; ``shares``: those chosen are written, not the thresholds."""

    def of(trial: Trial) -> TrialResult:
        return {
            "sites": trial.name,
            "retention": round(trial.retention, 6),
            "relative_flops": round(trial.flops, 6),
            "disagreement": round(trial.disagreement, 6),
        }

    return {
        "command": "calibrate",
        "config": {
            "model": search.lslm.name,
            "data": data,
            "budget": str(search.budget),
            "criterion": search.criterion,
            "layers": list(search.layers),
            "windows": list(search.windows),
            "longest": search.longest,
            "normaliser": search.normaliser,
            "attention": search.attention,
            "shares": shares,
            **{key: found.last.settings[key] for key in ("device", "dtype", "prompt", "batch", "recordings")},
        },
        "provenance": found.last.provenance,
        "depth": search.lslm.depth,
        "utterances": len(by_condition(found.last.rows)[UNPOOLED.name]),
        "unusable": list(found.last.unusable),
        "chosen": None if found.chosen is None else of(found.chosen),
        "alone": [of(trial) for trial in found.alone],
        "together": [of(trial) for trial in found.together],
        "chosen_shares": None if found.chosen_shares is None else of(found.chosen_shares),
        "pairs": [[of(thresholds), of(shares)] for thresholds, shares in found.pairs],
        "bearable": {str(layer): round(share, 6) for layer, share in bearable(found.alone, TOLERANCE).items()},
    }


def save(trial: Trial, attention: Attention, folder: Path) -> Path:
    """Write ``affinity_pool.json``, which ``affinity_pool.patch(model, path)`` loads."""
    path = folder / FILE
    content = {"sites": sites_json(trial.sites), "positions": "keep", "attention": attention}
    folders.write_json(path, content, indent=2)
    return path


def bearable(alone: Sequence[Trial], tolerance: float) -> Mapping[int, float]:
    """Of each layer the smallest share of tokens that changes at most ``tolerance`` of the answers; 1 if none does."""
    least: dict[int, float] = {}
    for trial in alone:
        layer = trial.layers[0]
        least.setdefault(layer, 1.0)
        if trial.disagreement <= tolerance:
            least[layer] = min(least[layer], trial.retention)
    return least
