"""What pages say alike: values with their intervals, what was left out, claims of the paper, what it ran on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..runs.results import ConditionsSummary, Estimate, Facts, MetricResult, Summary
from .charts import Series
from .drawing import known_ends
from .page import Cell, Section, Table

BINARY = ("B", "KiB", "MiB", "GiB")
DECIMAL = ("", "k", "M", "G", "T", "P")


class Claim(NamedTuple):
    """A finding of the paper, and what this run has to say to it."""

    text: str
    found: str
    holds: bool | None
    """None: this run cannot tell."""


def claims(found: Sequence[Claim]) -> Section:
    """The paper's findings beside this run's."""
    words = {True: Cell("agrees", "good"), False: Cell("does not", "bad"), None: Cell("cannot tell", "faint")}
    return Section(
        "Beside the paper",
        [
            Table(
                ["the paper finds", "here", ""],
                [[claim.text, claim.found, words[claim.holds]] for claim in found],
                "Other model, other data: what holds here says how the method behaves, not what it does elsewhere.",
                prose=True,
            )
        ],
    )


def form(metric: MetricResult) -> str:
    """How values of a metric are written."""
    return ".1%" if metric["percent"] else ".1f"


def value(metric: MetricResult, score: Estimate | None) -> str:
    """A value as its metric is written."""
    return "" if score is None else format(score["value"], form(metric))


def with_interval(metric: MetricResult, score: Estimate) -> str:
    """A value with its 95 % interval."""
    if not (ends := known_ends(score["interval_95"])):
        return value(metric, score)
    low, high = ends
    return f"{value(metric, score)} [{low:{form(metric)}}, {high:{form(metric)}}]"


def change(metric: MetricResult, score: Estimate | None) -> Cell | str:
    """A difference in points with its interval, good or bad where the interval shows it."""
    if score is None:
        return ""
    scale = 100 if metric["percent"] else 1
    text = f"{score['value'] * scale:+.1f}"
    if not (ends := known_ends(score["interval_95"])):
        return text
    low, high = ends
    text += f" [{low * scale:+.1f}, {high * scale:+.1f}]"
    if holds_zero(score):
        return text
    return Cell(text, "bad" if (low > 0) == (metric["better"] == "lower") else "good")


def plain(cell: Cell | str) -> str:
    """What a cell says, without its colour."""
    return cell.text if isinstance(cell, Cell) else cell


def holds_zero(score: Estimate | None) -> bool:
    """Whether a difference is none that could be shown."""
    if score is None or not (ends := known_ends(score["interval_95"])):
        return True
    return ends[0] <= 0 <= ends[1]


def curve(name: str, xs: Sequence[float], found: Sequence[Estimate], colour: int, dash: int = 0) -> Series:
    """Values with the band of their intervals."""
    low, high = ([estimate["interval_95"][side] for estimate in found] for side in (0, 1))
    return Series(name, xs, [estimate["value"] for estimate in found], low, high, colour, dash)


def left_out(summary: Summary) -> list[str]:
    """A sentence if recordings could not be used."""
    unusable = summary["unusable"]
    if not unusable:
        return []
    some = "; ".join(f"`{entry['utterance']}` {entry['problem']}" for entry in unusable[:3])
    more = f"; and {len(unusable) - 3} more, in results.jsonl" if len(unusable) > 3 else ""
    return [
        f"**{len(unusable)} of {summary['config']['recordings']} recordings could not be used** and count nowhere: "
        f"{some}{more}."
    ]


def machine(provenance: Facts) -> Facts:
    """Processor, system and versions, for a page's facts."""
    about = {key: provenance[key] for key in ("cores", "threads", "system", "commit", "date")}
    return {"processor": provenance["device"], **about, **provenance["versions"]}


def weighed(config: Facts) -> str:
    """A sentence where attention is proportional; runs from before there was a choice say nothing, and were plain."""
    if config.get("attention") != "proportional":
        return ""
    return " Attention is proportional: a merged token weighs as the tokens it stands for would together."


def model_name(config: Facts) -> str:
    """Without the folders above it."""
    name = config["model"]
    return Path(name).name if Path(name).exists() else name


def ran_on(summary: Summary) -> Facts:
    """Settings, machine and versions."""
    config = {key: value for key, value in summary["config"].items() if key not in ("command", "conditions", "trials")}
    config["model"] = model_name(config)
    config["data"] = Path(str(config.get("data"))).name
    lists = {key: ", ".join(map(str, value)) for key, value in config.items() if isinstance(value, list)}
    return {
        **{key: "none" if value is None else value for key, value in {**config, **lists}.items()},
        **machine(summary["provenance"]),
    }


def size(number: float, unit: str = "B") -> str:
    """A number of bytes (1024) or, with another unit, of that (1000), with three digits."""
    base, prefixes = (1024, BINARY) if unit == "B" else (1000, tuple(f"{p}{unit}" for p in DECIMAL))
    power = 0
    while number >= 1000 and power < len(prefixes) - 1:
        number, power = number / base, power + 1
    return f"{number:.3g} {prefixes[power]}"


def metrics_used(summary: ConditionsSummary) -> list[str]:
    """How each metric was computed, a paragraph each."""
    found = {
        metric["signature"]: f"**{metric['title']}** ({metric['better']} is better): `{metric['signature']}`"
        for metrics in summary["metrics"].values()
        for metric in metrics
    }
    return list(found.values())


INTERVALS = (
    "Intervals are 95 % bootstrap intervals over recordings (2000 samples, fixed seed). Differences are of pairs: "
    "both conditions answered the same recordings, and the same samples serve both. An interval that holds 0 shows "
    "nothing."
)
