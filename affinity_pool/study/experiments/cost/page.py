"""The page of ``affinity-pool cost``."""

from __future__ import annotations

from collections.abc import Sequence

from ....models import Site
from ...report.charts import Bars, bars
from ...report.figures import Chart
from ...report.page import Card, Cell, Page, Section, Table
from ...report.phrases import size, weighed
from ...runs.results import CostResult, CostSummary, Facts, Ratio
from ...sites import rule_name
from .run import finding

CONDITIONS = {"unpooled": "unpooled", "pooled": "pooled", "idle": "nothing merges"}


def page(summary: CostSummary) -> Page:
    """What was measured; ``summary`` is that of :func:`.run.run`."""
    records, method, origin = summary["results"], summary["method"], summary["provenance"]
    return Page(
        title="What pooling costs and saves",
        lead=(
            f"{method['model']} in {method['dtype']} on {origin['device']}: prefill to the first token, decoding, "
            f"memory and KV cache, with and without pooling in turns, {method['rounds']} rounds. {_what(method)}"
            f"{weighed(method)}"
        ),
        cards=_cards(records),
        findings=[
            *map(finding, records),
            _in_all(records),
        ],
        sections=[
            Section("Time to first token", [_ratios(records), _times(records)]),
            Section("Where the time goes", [PARTS, _parts(records), _parts_table(records)]),
            Section("Memory, KV cache, decoding, operations", [_savings(records)]),
        ],
        facts={
            **{key: value for key, value in method.items() if key != "sites"},
            **{key: origin[key] for key in ("device", "cores", "threads", "system", "load_average", "commit", "date")},
            **origin["versions"],
        },
    )


PARTS = (
    "The median of five passes of their own, not of the runs above; parts of a pass add up to its whole. **Pooling** "
    "is the op and the mask, rotary phases and bookkeeping for the layers after it; **encoder** includes projector and "
    "embeddings; **head** is norm, logits and the choice of the token; **rest** what `generate` prepares, and the "
    "decoder's own masks and phases."
)


def _in_all(records: list[CostResult]) -> str:
    slower = sum("SLOWER" in record["verdict"] for record in records)
    if slower:
        return f"**Pooling is slower in {slower} of {len(records)} cases.**"
    return f"In none of {len(records)} cases is pooling shown to be slower."


def _what(method: Facts) -> str:
    if "sites" in method:
        rules = [f"layer {site.layer}: {rule_name(site)}" for site in (Site(**entry) for entry in method["sites"])]
        return f"Sites: {'; '.join(rules)}."
    at_input, final = method["forced_retention"]
    return (
        f"Weights are random, which costs the same as trained ones; what each site keeps is made to be the paper's, "
        f"{at_input:.2%} and {final:.2%} of the audio tokens."
    )


def _cards(records: list[CostResult]) -> list[Card]:
    last = max(records, key=lambda record: record["seconds"])
    low, high = last["ratio_ci95"]
    cards = [Card(f"{last['ratio']:.2f}×", "time to first token, unpooled over pooled", f"[{low:.2f}, {high:.2f}]")]
    if last["dynamic_bytes"]:
        cards.append(
            Card(_share(last["dynamic_bytes"]), "of the peak memory beside weights", _sizes(last["dynamic_bytes"]))
        )
    cards.append(Card(_share(last["kv_bytes"]), "of the KV cache", _sizes(last["kv_bytes"])))
    cards.append(Card(f"{last['decode']['ratio']:.2f}×", "decoding speed, pooled over unpooled"))
    return [Card(card.figure, card.what, f"{last['name']}: {card.detail}".rstrip(": ")) for card in cards]


def _ratios(records: list[CostResult]) -> Chart:
    parts = [_ratio_bars("pooled", records, 0)]
    if idle := [record["idle"] for record in records if record["idle"]]:
        parts.append(_ratio_bars("idle", idle, 1))
    return bars(
        "time-to-first-token",
        [record["name"] for record in records],
        parts,
        x="time to first token, unpooled over pooled",
        baseline=("the same", 1.0),
        form=".2f",
        caption="Above 1 pooling is faster. Lines are 95 % intervals of the median over rounds.",
    )


def _ratio_bars(condition: str, ratios: Sequence[Ratio], colour: int) -> Bars:
    intervals = [(ratio["ratio_ci95"][0], ratio["ratio_ci95"][1]) for ratio in ratios]
    return Bars(CONDITIONS[condition], [ratio["ratio"] for ratio in ratios], intervals, colour=colour)


def _times(records: list[CostResult]) -> Table:
    ways = [way for way in CONDITIONS if way != "idle" or records[0]["idle"]]
    rows: list[list[str | Cell]] = []
    for record in records:
        low, high = record["ratio_ci95"]
        slower = "SLOWER" in record["verdict"]
        times = [record["unpooled_seconds"], record["pooled_seconds"]]
        times += [record["idle_seconds"]] if record["idle"] else []
        rows.append(
            [
                record["name"],
                str(record["prompts"]),
                " → ".join(map(str, record["tokens"])),
                *(f"{1e3 * t['p50']:.1f} ({1e3 * t['p20']:.1f}–{1e3 * t['p80']:.1f})" for t in times),
                Cell(
                    f"{record['ratio']:.3f} [{low:.3f}, {high:.3f}]",
                    "bad" if slower else "good" if low > 1 else "faint",
                ),
            ]
        )
    header = ["audio", "prompts", "tokens", *(f"{CONDITIONS[way]}, ms" for way in ways), "unpooled / pooled"]
    return Table(header, rows, "A prompt's time: median over rounds, and the 20th and 80th percentile.")


def _parts(records: list[CostResult]) -> Chart:
    labels = [f"{record['name']}, {way}" for record in records for way in record["parts"]]
    found = [parts for record in records for parts in record["parts"].values()]
    *names, head, rest = _part_names(records)
    shown = [Bars(name, [1e3 * parts.get(name, 0.0) for parts in found]) for name in names]
    return bars(
        "parts",
        labels,
        [*shown, Bars(f"{head} and {rest}", [1e3 * (parts[head] + parts[rest]) for parts in found])],
        x="ms of a prefill",
        stacked=True,
        form=".1f",
    )


def _parts_table(records: list[CostResult]) -> Table:
    names = _part_names(records)
    rows = [
        [f"{record['name']}, {way}", *(f"{1e3 * parts[name]:.2f}" if name in parts else "" for name in names)]
        for record in records
        for way, parts in record["parts"].items()
    ]
    return Table(["ms", *names], rows)


def _part_names(records: list[CostResult]) -> list[str]:
    """In the order of a pooled prefill, with what is before and after everything at the end."""
    names = list(records[0]["parts"]["pooled"])
    return [*names[1:], names[0]]


def _savings(records: list[CostResult]) -> Table:
    rows = []
    for record in records:
        decode, flops, memory = record["decode"], record["flops"], record["dynamic_bytes"]
        low, high = decode["ratio_ci95"]
        speed = decode["tokens_per_second"]
        rows.append(
            [
                record["name"],
                f"{_sizes(memory)} ({memory[0] / memory[1]:.2f}×)" if memory else "not known",
                f"{_sizes(record['kv_bytes'])} ({_share(record['kv_bytes'])})",
                f"{speed['unpooled']:.1f} → {speed['pooled']:.1f}",
                f"{decode['ratio']:.2f} [{low:.2f}, {high:.2f}]",
                f"{flops['ratio']:.1%}" if flops else "not known",
            ]
        )
    header = ["audio", "peak memory", "KV cache", "tokens a second", "faster", "decoder FLOPs"]
    return Table(
        header,
        rows,
        "Peak memory is that of a prefill's tensors, beside weights and inputs. Decoding: steps after the first token.",
    )


def _share(pair: Sequence[float]) -> str:
    return f"{pair[1] / pair[0]:.0%}"


def _sizes(pair: Sequence[float]) -> str:
    return f"{size(pair[0])} → {size(pair[1])}"
