"""What a serving run found, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from ....cli.application import console
from ...metrics.wer import marked
from ...report.figures import printable
from ...runs.results import ServedClip, ServingSummary
from ..demo.terminal import STYLES
from .run import WAYS, interval


def say(sentence: str) -> None:
    """As it is written, without the marks of a page."""
    plain = printable(sentence.replace("**", "").replace("`", ""))
    console.print(Text(plain, "bold yellow" if "SLOWER" in plain else ""), soft_wrap=True)


def show(summary: ServingSummary) -> None:
    """Print answers, tokens, times and what they come to."""
    console.print("", _answers(summary), "", _times(summary), "", sep="\n")
    for line in conclusions(summary):
        say(line)
    for note in summary["notes"]:
        say(f"Note: {note}")


def conclusions(summary: ServingSummary) -> Iterator[str]:
    """All of it in words, a sentence or two each, the unwelcome ones too."""
    unpooled, pooled = prompt_tokens(summary)
    before, after = (sum(clip["kv_blocks"][way] for clip in summary["clips"]) for way in (0, 1))
    yield (
        f"Prompt tokens of {len(summary['clips'])} recordings, text included: {unpooled} → {pooled}; "
        f"KV blocks of {summary['block_size']} tokens: {before} → {after}."
    )
    if errors := summary["word_errors"]:
        counts = (f"{way} {wrong(errors[way])} of {errors[way]['words']}" for way in WAYS)
        yield f"Wrong words: {', '.join(counts)}."
    results = summary["results"]
    rates = {result["concurrency"]: result["requests_per_second"] for result in results}
    first = {result["concurrency"]: result["first_token_seconds"] for result in results}
    for found, what in ((rates, "fewer requests a second"), (first, "a later first token")):
        slower = [str(at_once) for at_once, ratio in found.items() if "SLOWER" in ratio["verdict"]]
        if slower:
            yield f"**Pooling is SLOWER, {what}, with {', '.join(slower)} at once.**"
        else:
            yield f"With none of {', '.join(map(str, found))} at once is pooling shown to mean {what}."


def wrong(errors: dict[str, int]) -> int:
    """Words substituted, deleted and inserted."""
    return errors["substitutions"] + errors["deletions"] + errors["insertions"]


def prompt_tokens(summary: ServingSummary) -> tuple[int, int]:
    """Of all recordings, without and with pooling."""
    unpooled, pooled = (sum(clip["prompt_tokens"][way] for clip in summary["clips"]) for way in (0, 1))
    return unpooled, pooled


def compared_words(clip: ServedClip, answer: str) -> list[tuple[str, str]]:
    """The words of an answer and what is wrong with each: against the reference, else against the unpooled answer."""
    return list(marked(str(clip["unpooled"]) if clip["reference"] is None else clip["reference"], answer))


def arrow(pair: list[int]) -> str:
    return " → ".join(map(str, pair))


def _answers(summary: ServingSummary) -> Table:
    table = Table.grid(padding=(0, 2))
    for clip in summary["clips"]:
        detail = f"{clip['seconds']:.1f} s, prompt tokens {arrow(clip['prompt_tokens'])}"
        table.add_row(Text(printable(clip["name"]), "bold"), Text(detail, "dim"))
        if clip["unpooled"] is None or clip["pooled"] is None:
            continue
        if clip["reference"] is not None:
            table.add_row(Text("  reference", "dim"), Text(printable(clip["reference"])))
        for way, said in (("unpooled", clip["unpooled"]), ("pooled", clip["pooled"])):
            words = (Text(printable(word), STYLES[kind]) for word, kind in compared_words(clip, said))
            table.add_row(Text(f"  {way}", "dim"), Text(" ").join(words))
    return table


def _times(summary: ServingSummary) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for header in ("at once", "", "first token, s", "requests/s", "output tokens/s"):
        table.add_column(header, justify="left" if not header else "right", no_wrap=True)
    for result in summary["results"]:
        first, rate = result["first_token_seconds"], result["requests_per_second"]
        tokens = result["output_tokens_per_second"]
        at_once = str(result["concurrency"])
        table.add_row(at_once, "unpooled", *(f"{found['unpooled']:.3g}" for found in (first, rate, tokens)))
        table.add_row("", "pooled", *(f"{found['pooled']:.3g}" for found in (first, rate, tokens)))
        table.add_row("", "faster [95 %]", *map(interval, (first, rate, tokens)))
    return table
