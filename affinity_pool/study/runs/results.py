"""What runs write, as types: a line of ``results.jsonl`` and the ``summary.json`` of each command.

An interval is the 95 % bootstrap interval over recordings, ``[None, None]`` where there are too few of them. Shares are
of 1, times in seconds, sizes in bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypedDict, TypeVar

from typing_extensions import NotRequired

from ...models import Layer
from ..metrics import Normaliser

Bounds = list[float | None]
"""Low and high."""
Facts = dict[str, Any]
"""Settings of a run, or the machine and versions it ran on, as JSON: shown, never computed with."""


class Unusable(TypedDict):
    """A recording that counts nowhere."""

    utterance: str
    problem: str


class Answer(TypedDict):
    """A recording answered under one condition."""

    utterance: str
    condition: str
    facts: Facts
    """Of the condition; see :class:`ConditionResult`."""
    prompt: str
    task: str
    language: str | None
    metric: str | None
    normaliser: Normaliser
    reference: str | None
    answer: str
    seconds: float
    text_tokens: int
    audio_tokens: int
    """As the encoder makes them."""
    layers: list[Layer]
    """Of the sites."""
    kept: list[int]
    """Audio tokens left after each of them."""
    heard: NotRequired[list[int]]
    """Of an encoder-decoder model: tokens of the recording, without the padding behind it, and the groups of them that
    are left."""
    first_token_kl: NotRequired[float]
    """KL divergence of the first token's distribution from that of the first condition, nats."""
    judged: NotRequired[list[float | None]]
    """The judge's counts, where there is one."""


class Similarities(TypedDict):
    """A recording's similarities: an entry for each layer and one for what leaves the last."""

    utterance: str
    seconds: float
    audio_tokens: int
    words: int | None
    neighbour: list[float | None]
    overall: list[float | None]
    intra_word: list[float | None]


class TokensLeft(TypedDict):
    """A recording's audio tokens left by every rule at every layer: ``left[layer][rule]``."""

    utterance: str
    audio_tokens: int
    left: list[list[int]]


Row = TypeVar("Row", bound=Mapping[str, Any])


@dataclass(frozen=True)
class Finished(Generic[Row]):
    """A run with nothing left to do."""

    settings: Facts
    rows: Sequence[Row]
    """Of recordings that could be used, in order."""
    unusable: Sequence[Unusable]
    provenance: Facts
    """The machine, versions and commit it was begun with, see :mod:`affinity_pool.provenance`."""


class Estimate(TypedDict):
    value: float
    interval_95: Bounds


class CountedEstimate(Estimate):
    utterances: int


class ScoreResult(CountedEstimate):
    """One metric of one condition, over the answers of one task."""

    difference: CountedEstimate | None
    """To the unpooled model; None for that model itself."""


class MetricResult(TypedDict):
    name: str
    title: str
    better: Literal["lower", "higher"]
    percent: bool
    signature: str


class ConditionResult(TypedDict):
    """One condition over all its recordings. Which of the keys at the end there are depends on the experiment."""

    name: str
    layers: list[Layer]
    utterances: int
    audio_tokens: int
    retention: list[float]
    """After each site."""
    heard_tokens: NotRequired[int]
    """Of an encoder-decoder model: tokens of the recordings, without the padding behind them."""
    heard_retention: NotRequired[float]
    """The share of those that is left."""
    relative_flops: float
    scores: dict[str, dict[str, ScoreResult]]
    """``scores[task][metric]``"""
    method: NotRequired[str]
    sites: NotRequired[str]
    attention: NotRequired[str]
    """Missing where a run is older than the choice, and plain there."""
    beside: NotRequired[str]
    """What is compared with, by its ``sites``: with shares thresholds, with proportional attention plain."""
    as_shares: NotRequired[str]
    """The shares that leave as many tokens as thresholds did, as ``sites``."""
    against_affinity: NotRequired[dict[str, dict[str, CountedEstimate | None]]]
    """Differences as ``scores``: of a baseline to Affinity Pooling at the same counts, of others to ``beside``."""
    operator: NotRequired[str]
    budget: NotRequired[str]
    layer: NotRequired[int]
    threshold: NotRequired[float]
    window: NotRequired[int]


class Summary(TypedDict):
    """What every summary has."""

    command: str
    config: Facts
    provenance: Facts
    unusable: list[Unusable]


class ConditionsSummary(Summary):
    """Of eval, oracle and probe; the unpooled model is the first condition, the headline metric the first of a task."""

    metrics: dict[str, list[MetricResult]]
    conditions: list[ConditionResult]


SimilarityFigure = Literal["neighbour", "overall", "intra_word"]


class LayerSimilarity(TypedDict):
    layer: int
    neighbour: Estimate | None
    overall: Estimate | None
    intra_word: Estimate | None


class DynamicsSummary(Summary):
    utterances: int
    with_words: int
    audio_tokens: int
    layers: list[LayerSimilarity]


class TrialResult(TypedDict):
    """Sites as :func:`affinity_pool.study.sites.parse_sites` takes them, and what pooling there came to."""

    sites: str
    retention: float
    relative_flops: float
    disagreement: float


class CalibrationSummary(Summary):
    depth: int
    utterances: int
    chosen: TrialResult | None
    alone: list[TrialResult]
    together: list[TrialResult]
    chosen_shares: NotRequired[TrialResult | None]
    """As ``chosen``, of the sites that keep shares; missing, like the next, where a run is older than those."""
    pairs: NotRequired[list[list[TrialResult]]]
    """Thresholds within the budget, and the shares that leave as many tokens."""
    bearable: dict[str, float]
    """By layer."""


class Percentiles(TypedDict):
    p20: float
    p50: float
    p80: float


class Ratio(TypedDict):
    """Time of the unpooled model over another condition's: the median over rounds, and its interval."""

    ratio: float
    ratio_ci95: list[float]
    verdict: str


class DecodeResult(Ratio):
    new_tokens: int
    tokens_per_second: dict[str, float]


class FlopsResult(TypedDict):
    """Operations of a prefill; ``encoder`` is None where its cannot be counted."""

    encoder: float | None
    decoder: dict[str, float]
    ratio: float
    """Of the decoder, pooled over unpooled."""


class CostResult(Ratio):
    """A prompt of one case, unpooled and pooled; pairs hold both in this order."""

    name: str
    seconds: float
    batch: int
    prompts: int
    tokens: list[int]
    audio_retention: list[float]
    unpooled_seconds: Percentiles
    pooled_seconds: Percentiles
    idle_seconds: NotRequired[Percentiles]
    idle: Ratio | None
    parts: dict[str, dict[str, float]]
    pooling_seconds: float
    decode: DecodeResult
    kv_bytes: list[int]
    dynamic_bytes: list[int] | None
    flops: FlopsResult | None
    rounds: NotRequired[dict[str, dict[str, list[float]]]]
    """In ``results.jsonl`` alone."""


class DemoSummary(TypedDict):
    """Of the demo; ``clips`` and ``total`` have the same costs."""

    command: str
    config: Facts
    provenance: Facts
    notes: list[str]
    wer: dict[str, float] | None
    word_errors: dict[str, dict[str, int]] | None
    total: dict[str, Any]
    clips: list[dict[str, Any]]


class CostSummary(TypedDict):
    command: str
    suite: str
    provenance: Facts
    method: Facts
    results: list[CostResult]


class Compared(Ratio):
    """A median over rounds without and with pooling; the ratio is of times, above 1 where pooling is better."""

    unpooled: float
    pooled: float


class ServingRound(TypedDict):
    """One way in one round; ``first_token`` is the median over its requests, ``answer`` that of whole answers."""

    seconds: float
    first_token: float
    answer: float
    output_tokens: int


class ServingResult(TypedDict):
    """So many requests at once, ``rounds[way]`` times ``requests`` of them."""

    concurrency: int
    requests: int
    first_token_seconds: Compared
    answer_seconds: Compared
    requests_per_second: Compared
    output_tokens_per_second: Compared
    parts: dict[str, dict[str, float]] | None
    """``parts[way][part]``: seconds of a request, the mean's median over rounds; None: the server does not tell."""
    rounds: dict[str, list[ServingRound]]


class ServedClip(TypedDict):
    """A recording; pairs are without and with pooling, answers None where they mean nothing."""

    name: str
    seconds: float
    prompt: str
    reference: str | None
    unpooled: str | None
    pooled: str | None
    prompt_tokens: list[int]
    kv_blocks: list[int]


class ServingSummary(TypedDict):
    command: str
    config: Facts
    provenance: Facts
    notes: list[str]
    word_errors: dict[str, dict[str, int]] | None
    block_size: int
    blocks: int | None
    """Of the server's whole KV cache; None where it does not tell."""
    clips: list[ServedClip]
    timed: ServedClip | None
    """A clip of those that were timed, where recordings are joined for that."""
    results: list[ServingResult]
