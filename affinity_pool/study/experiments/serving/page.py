"""The page of ``affinity-pool serving``."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ...report.charts import NARROW, Bars, bars
from ...report.figures import Chart
from ...report.page import Answers, Card, Cell, Page, Section, Table
from ...report.phrases import machine, model_name
from ...runs.results import Compared, ServedClip, ServingResult, ServingSummary
from .load import FRONT
from .run import STARTED, WAYS, finding, interval
from .terminal import arrow, compared_words, conclusions, prompt_tokens, wrong


def page(summary: ServingSummary) -> Page:
    """What was measured; ``summary`` is that of :func:`.run.run`."""
    config, origin, results = summary["config"], summary["provenance"], summary["results"]
    return Page(
        title=f"{model_name(config)} served by vLLM, with and without Affinity Pooling",
        lead=f"One server on {origin['device']}, the same recordings through the OpenAI client twice: with all their "
        f"audio tokens, and pooled to {config['keep']:.0%} of them (`keep={config['keep']:g}`).",
        cards=list(_cards(summary)),
        findings=[*map(finding, results), *conclusions(summary), *summary["notes"]],
        sections=[
            Section("What it answered", [*_answers(summary), _tokens(summary)]),
            Section("How fast", [_ratios(results), *_rates(results), _times(results)]),
            *([Section("Where a request's time goes", [PARTS, _parts(results)])] if results[0]["parts"] else []),
            Section("What is measured", list(_measured(summary))),
        ],
        facts={
            **{key: value for key, value in config.items() if key not in ("concurrency", "model")},
            "model": model_name(config),
            "load average": ", ".join(map(str, origin["load_average"] or ())) or "not known",
            **machine(origin),
        },
    )


PARTS = (
    "Seconds of a request in the mean, as the server counts them, and the median of that over rounds. **Prefill** "
    "begins when the engine turns to a request and holds the encoder, the pooling and the decoder over the prompt, and "
    "waiting for others in the same step; **decoding** is all tokens after the first; **front end** is the rest of "
    "what the client waits for: the way there and back, the reading of the recording and its spectrogram. Front end "
    "and encoder are the same with pooling: where they are most of the work there is little to gain."
)


def _cards(summary: ServingSummary) -> Iterator[Card]:
    last = summary["results"][-1]
    rate, first = last["requests_per_second"], last["first_token_seconds"]
    at_once = f"{last['concurrency']} at once"
    yield Card(f"{rate['ratio']:.2f}×", "requests a second, pooled over unpooled", f"{at_once}, {_bounds(rate)}")
    yield Card(f"{first['ratio']:.2f}×", "time to first token, unpooled over pooled", f"{at_once}, {_bounds(first)}")
    unpooled, pooled = prompt_tokens(summary)
    yield Card(f"{pooled / unpooled:.0%}", "of the prompt tokens, text included", f"{unpooled} → {pooled}")
    if errors := summary["word_errors"]:
        found = " → ".join(str(wrong(errors[way])) for way in WAYS)
        yield Card(found, "wrong words, without and with pooling", f"of {errors['unpooled']['words']}")


def _bounds(ratio: Compared) -> str:
    low, high = ratio["ratio_ci95"]
    return f"95 % interval {low:.2f} to {high:.2f}"


def _answers(summary: ServingSummary) -> Iterator[Answers | str]:
    if summary["config"]["dummy_weights"]:
        yield "The weights are vLLM's dummies, so answers mean nothing and are not shown."
    for clip in summary["clips"]:
        if clip["unpooled"] is None or clip["pooled"] is None:
            continue
        asked = "" if clip["prompt"] == "transcribe" else f", asked: {clip['prompt']}"
        reference = [] if clip["reference"] is None else [("reference", clip["reference"])]
        answers = [(way, compared_words(clip, said)) for way, said in zip(WAYS, _said(clip), strict=True)]
        yield Answers(clip["name"], f"{clip['seconds']:.1f} s{asked}", [*reference, *answers])


def _said(clip: ServedClip) -> tuple[str, str]:
    return str(clip["unpooled"]), str(clip["pooled"])


def _tokens(summary: ServingSummary) -> Table:
    timed = [summary["timed"]] if summary["timed"] else []
    rows = [
        [clip["name"], f"{clip['seconds']:.1f} s", arrow(clip["prompt_tokens"]), arrow(clip["kv_blocks"])]
        for clip in [*summary["clips"], *timed]
    ]
    size, blocks = summary["block_size"], summary["blocks"]
    whole = f", of which the server has {blocks}" if blocks else ""
    caption = f"Prompts with their text, as the server counts them. A block of its KV cache holds {size} tokens{whole}."
    return Table(["recording", "length", "prompt tokens", "KV blocks"], rows, caption)


def _ratios(results: list[ServingResult]) -> Chart:
    def part(name: str, of: Callable[[ServingResult], Compared], colour: int) -> Bars:
        found = [of(result) for result in results]
        ends = [(one["ratio_ci95"][0], one["ratio_ci95"][1]) for one in found]
        return Bars(name, [one["ratio"] for one in found], ends, colour=colour)

    return bars(
        "faster",
        _labels(results),
        [
            part("requests a second", lambda result: result["requests_per_second"], 0),
            part("time to first token", lambda result: result["first_token_seconds"], 1),
        ],
        x="times faster with pooling",
        baseline=("the same", 1.0),
        form=".2f",
        caption="Above 1 pooling is faster. Lines are 95 % intervals of the median over rounds.",
    )


def _rates(results: list[ServingResult]) -> Iterator[Chart]:
    def chart(name: str, of: Callable[[ServingResult], Compared], x: str) -> Chart:
        found = [of(result) for result in results]
        parts = [Bars("unpooled", [one["unpooled"] for one in found]), Bars("pooled", [one["pooled"] for one in found])]
        return bars(name, _labels(results), parts, x=x, form=".3g", width=NARROW)

    yield chart("first-token", lambda result: result["first_token_seconds"], "seconds to the first token")
    yield chart("throughput", lambda result: result["requests_per_second"], "requests a second")


def _labels(results: list[ServingResult]) -> list[str]:
    return [f"{result['concurrency']} at once" for result in results]


def _times(results: list[ServingResult]) -> Table:
    def cells(found: Compared, form: str) -> list[str | Cell]:
        low, _ = found["ratio_ci95"]
        both = f"{found['unpooled']:{form}} → {found['pooled']:{form}}"
        if "SLOWER" in found["verdict"]:
            return [both, Cell(interval(found), "bad")]
        return [both, Cell(interval(found), "good" if low > 1 else "faint")]

    rows = [
        [
            label,
            str(result["requests"]),
            *cells(result["first_token_seconds"], ".3f"),
            *cells(result["answer_seconds"], ".3f"),
            *cells(result["requests_per_second"], ".2f"),
            *cells(result["output_tokens_per_second"], ".1f")[:1],
        ]
        for label, result in zip(_labels(results), results, strict=True)
    ]
    header = ["", "requests\na round", "first\ntoken, s", "ratio [95 %]", "whole\nanswer, s", "ratio [95 %]"]
    header += ["requests\na second", "ratio [95 %]", "output tokens\na second"]
    return Table(header, rows, "Medians, without → with pooling. Ratios are above 1 where pooling is faster.")


def _parts(results: list[ServingResult]) -> Chart:
    known = [(result, result["parts"]) for result in results if result["parts"]]
    labels = [f"{result['concurrency']} at once, {way}" for result, _ in known for way in WAYS]
    found = [parts[way] for _, parts in known for way in WAYS]
    names = [FRONT, *(name for name in found[0] if name != FRONT)]
    shown = [Bars(name, [parts[name] for parts in found]) for name in names]
    return bars("parts", labels, shown, x="seconds of a request", stacked=True, form=".2f")


def _measured(summary: ServingSummary) -> Iterator[str]:
    config = summary["config"]
    yield (
        f"**In turns**: at each number of requests at once {config['rounds']} rounds, after one that does not count. "
        "In a round the same requests are sent both ways, one way after the other, in the order unpooled, pooled, "
        "pooled, unpooled; that many are under way at any time, and one is sent when another is done. A ratio is taken "
        "within each round; shown is its median with the interval of a median (order statistics). If that holds 1, no "
        "difference was shown."
    )
    yield (
        "**The clock** is the client's, on the machine that is asking: from the sending of a request, recording "
        "included, to the first piece of text, and to the end of the answer. If server and client share a machine they "
        "take each other's time, both ways alike."
    )
    yield (
        f"**Answers** that are timed have exactly {config['tokens']} tokens, whatever they say, so that both ways do "
        "the same work beside pooling; those that are shown were asked for alone and end where the model ends them. "
        "All are greedy. The more tokens are decoded, the less of the time is what pooling shortens."
    )
    yield (
        "**No cache answers**: each request of a round has noise of its own in the recording's lowest bit, both ways "
        "the same, so that neither encoder nor prefix cache has seen it"
        + (
            "."
            if config["server"] != STARTED
            else "; the server was started with both switched off besides (`--no-enable-prefix-caching`, "
            "`--mm-processor-cache-gb 0`)."
        )
    )
    if config["seconds"] is not None:
        yield (
            f"**Clips** that are timed have {config['seconds']:g} s: the recordings one after the other, each clip "
            "beginning with another one."
        )
    if summary["word_errors"]:
        yield (
            "**Wrong words** are substituted, deleted and inserted ones; case and punctuation do not count. Marked "
            "words are wrong (without a reference: differ from the unpooled answer), struck-through ones are missing."
        )
