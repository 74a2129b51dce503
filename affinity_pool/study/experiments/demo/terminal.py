"""What a demo found, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...metrics.wer import marked
from ...report.figures import printable
from ...sites import site_name
from .run import Clip, Cost, Demo

STYLES = {"equal": "", "substitute": "bold red", "insert": "bold red", "delete": "red strike"}


def show(demo: Demo, console: Console) -> None:
    """Print transcripts, costs and what they come to."""
    console.print(_transcripts(demo), "", _costs(demo), "", sep="\n")
    for line in conclusions(demo):
        console.print(_shown(line, "bold yellow" if "SLOWER" in line else ""))
    for note in demo.notes:
        console.print(_shown(f"Note: {note}", "yellow"))


def conclusions(demo: Demo) -> Iterator[str]:
    """The totals in words, a sentence or two each, the unwelcome ones too."""
    cost = demo.cost
    if demo.errors:
        unpooled, pooled = demo.errors
        yield (
            f"WER over {unpooled.words} words: unpooled {unpooled.rate:.1%} ({unpooled.count} errors), "
            f"pooled {pooled.rate:.1%} ({pooled.count})."
        )
    else:
        same = sum(clip.unpooled == clip.pooled for clip in demo.clips)
        yield f"No reference texts, so no WER: {same} of {len(demo.clips)} answers are the same with pooling."
    yield (
        f"Audio tokens {arrows(cost)}: {cost.audio_tokens[-1] / cost.audio_tokens[0]:.0%} are left after "
        f"{site_name(demo.pooling.sites[-1])}."
    )
    if cost.heard_tokens:
        heard, left = cost.heard_tokens
        yield (
            f"The recordings' own are {heard} of them, of which {left} are left, {left / heard:.0%}: the others are "
            "padding, to the length that the model hears at once."
        )
    yield f"Decoder prefill {cost.flops_ratio:.1%} of its FLOPs, KV cache {cost.kv_bytes[1] / cost.kv_bytes[0]:.1%}."
    if cost.flops[0].encoder:
        share = cost.flops[0].encoder / cost.flops[0].total
        yield f"The audio encoder, which pooling leaves alone, does {share:.0%} of the unpooled prefill's FLOPs."
    low, high = cost.ttft.interval
    yield (
        f"Time to first token: {cost.ttft.verdict}; unpooled over pooled {cost.ttft.ratio:.3f} "
        f"[{low:.3f}, {high:.3f}], {demo.runs} interleaved pairs a recording."
    )


def arrows(cost: Cost) -> str:
    """Audio tokens from the encoder to the last site."""
    return " → ".join(map(str, cost.audio_tokens))


def _transcripts(demo: Demo) -> Table:
    table = Table.grid(padding=(0, 2))
    for clip in demo.clips:
        asked = "" if clip.prompt == "transcribe" else f", asked: {clip.prompt}"
        table.add_row(_shown(clip.name, "bold"), _shown(f"{clip.seconds:.1f} s{asked}", "dim"))
        if clip.reference is not None:
            table.add_row(Text("  reference", "dim"), _shown(clip.reference))
        table.add_row(Text("  unpooled", "dim"), _marked(demo, clip, clip.unpooled))
        table.add_row(Text("  pooled", "dim"), _marked(demo, clip, clip.pooled))
    return table


def compared(demo: Demo, clip: Clip, answer: str) -> list[tuple[str, str]]:
    """The words of an answer and what is wrong with each: against the reference, else against the unpooled answer."""
    return list(marked(clip.unpooled if clip.reference is None else clip.reference, answer, demo.normaliser))


def _marked(demo: Demo, clip: Clip, answer: str) -> Text:
    return Text(" ").join(_shown(word, STYLES[kind]) for word, kind in compared(demo, clip, answer))


def _shown(text: str, style: str = "") -> Text:
    """Text as it is written: no markup, no codes of emoji, nothing that would steer the terminal."""
    return Text(printable(text), style)


def _costs(demo: Demo) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("", overflow="fold")
    for header in ("audio tokens", "FLOPs", "KV", "TTFT, ms", "ratio [95 %]"):
        table.add_column(header, justify="right", no_wrap=True)
    for clip in demo.clips:
        table.add_row(_shown(clip.name), *_cells(clip.cost))
    table.add_section()
    if len(demo.clips) > 1:
        table.add_row("total", *_cells(demo.cost), style="bold")
    return table


def _cells(cost: Cost) -> list[str]:
    low, high = cost.ttft.interval
    unpooled, pooled = median(cost.ttft.unpooled) * 1e3, median(cost.ttft.pooled) * 1e3
    return [
        arrows(cost),
        f"{cost.flops_ratio:.0%}",
        f"{cost.kv_bytes[1] / cost.kv_bytes[0]:.0%}",
        " → ".join(f"{ms:.{0 if ms >= 100 else 1}f}" for ms in (unpooled, pooled)),
        f"{cost.ttft.ratio:.2f} [{low:.2f}, {high:.2f}]",
    ]
