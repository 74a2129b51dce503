"""The demo's page: what was answered, where the tokens went and what it cost, and ``summary.json`` beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median

from ...report import groups_picture
from ...report.page import Answers, Card, Page, Section, Table
from ...report.page import write as write_page
from ...report.phrases import machine, model_name, size, weighed
from ...runs import folders
from ...runs.results import DemoSummary
from ...sites import rule_name, site_name
from .run import Clip, Cost, Demo, summarise
from .terminal import arrows, compared, conclusions


def write(demo: Demo, folder: Path) -> list[Path]:
    """Write ``index.html``, ``groups.png``, ``groups-dark.png`` and ``summary.json`` into ``folder``."""
    summary = summarise(demo)
    figures = folder / folders.SUMMARY
    folders.write_json(figures, summary, indent=2)  # first: it says whose the folder is
    return [*write_page(page(demo, summary), folder), figures]


def page(demo: Demo, summary: DemoSummary) -> Page:
    """The page; ``summary`` is that of :func:`.run.summarise`."""
    rules = "; ".join(f"{site_name(site)}: {rule_name(site)}" for site in demo.pooling.sites)
    return Page(
        title=f"Dual Affinity Pooling on {model_name(summary['config'])}",
        lead="The same recordings through the same model twice: as it is, and with similar neighbouring audio tokens "
        f"merged ({rules})." + weighed(summary["config"]),
        cards=list(_cards(demo)),
        findings=[*conclusions(demo), *demo.notes],
        sections=[
            Section("Where the tokens went", [groups_picture.chart(demo.picture, "groups", PICTURE)]),
            Section("What it answered", [_answers(demo, clip) for clip in demo.clips]),
            Section("What it cost", [_costs(demo)]),
            Section("What is measured", list(_measured(demo))),
        ],
        facts={
            **summary["config"],
            **machine(summary["provenance"]),
            "sites": rules,
        },
    )


def _cards(demo: Demo) -> Iterator[Card]:
    cost = demo.cost
    yield Card(f"{cost.audio_tokens[-1] / cost.audio_tokens[0]:.0%}", "of the audio tokens left", arrows(cost))
    if demo.errors:
        unpooled, pooled = demo.errors
        yield Card(f"{pooled.rate:.1%}", "WER with pooling", f"{unpooled.rate:.1%} without; {unpooled.words} words")
    flops = " → ".join(size(flops.decoder, "FLOP") for flops in cost.flops)
    yield Card(f"{cost.flops_ratio:.0%}", "of the decoder's prefill FLOPs", flops)
    yield Card(f"{cost.kv_bytes[1] / cost.kv_bytes[0]:.0%}", "of the KV cache", " → ".join(map(size, cost.kv_bytes)))
    low, high = cost.ttft.interval
    interval = f"95 % interval {low:.2f} to {high:.2f}"
    yield Card(f"{cost.ttft.ratio:.2f}×", "time to first token, unpooled over pooled", interval)


def _answers(demo: Demo, clip: Clip) -> Answers:
    asked = "" if clip.prompt == "transcribe" else f", asked: {clip.prompt}"
    reference = [] if clip.reference is None else [("reference", clip.reference)]
    answers = [
        (name, compared(demo, clip, said)) for name, said in (("unpooled", clip.unpooled), ("pooled", clip.pooled))
    ]
    return Answers(clip.name, f"{clip.seconds:.1f} s{asked}", [*reference, *answers])


def _costs(demo: Demo) -> Table:
    path = " → ".join(["encoder", *map(site_name, demo.pooling.sites)])
    header = ["", f"audio tokens\n{path}", "decoder prefill,\nFLOPs", "KV cache", "first token", "ratio [95 %]"]
    rows = [_row(clip.name, clip.cost) for clip in demo.clips]
    if len(rows) == 1:
        return Table(header, rows)
    return Table(header, [*rows, _row("total", demo.cost)], strong=[-1])


def _row(name: str, cost: Cost) -> list[str]:
    low, high = cost.ttft.interval
    return [
        name,
        arrows(cost),
        f"{size(cost.flops[0].decoder, '')} → {size(cost.flops[1].decoder, '')} ({cost.flops_ratio:.1%})",
        f"{size(cost.kv_bytes[0])} → {size(cost.kv_bytes[1])} ({cost.kv_bytes[1] / cost.kv_bytes[0]:.1%})",
        f"{median(cost.ttft.unpooled) * 1e3:.1f} → {median(cost.ttft.pooled) * 1e3:.1f} ms",
        f"{cost.ttft.ratio:.2f} [{low:.2f}, {high:.2f}]",
    ]


PICTURE = (
    "Bars stand for tokens and are as long as the time they cover; a number says how many tokens a group holds. The "
    "colour is that of the group a token ends up in; grey stays alone to the end. Dashed lines are the words' edges, "
    "where they are known."
)


def _measured(demo: Demo) -> Iterator[str]:
    encoder = (
        " The audio encoder runs before all of it and is not in this figure; pooling leaves it as it is, but it is "
        "part of the time to first token."
    )
    yield (
        "**WER**: substituted, deleted and inserted words per word of the reference, over all recordings together; "
        "case and punctuation do not count. Marked words are wrong (without a reference: differ from the unpooled "
        "answer), struck-through ones are missing."
    )
    yield (
        "**Audio tokens**: what the encoder makes of the recording, and what is left after each site. Text is never "
        "merged."
    )
    yield (
        "**Decoder prefill**: operations of the matrix products for the whole prompt, text included, computed from "
        "the tokens each layer sees; attention counts the full square; logits of the last token only."
        + encoder
        * bool(demo.cost.flops[0].encoder)
    )
    yield "**KV cache**: bytes of keys and values of the prompt in all layers."
    yield (
        "**First token**: from features in memory to the first token's id, encoder, prefill and the pooling itself "
        f"included: medians of {demo.runs} pairs of runs, unpooled and pooled in turn, after two pairs of warm-up. The "
        "ratio is the median over pairs of unpooled over pooled, above 1 where pooling is faster; its interval is that "
        "of a median (order statistics). If the interval holds 1, no difference was shown."
    )
