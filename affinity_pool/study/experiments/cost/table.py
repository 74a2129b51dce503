"""The table of what a cost study measured, in Markdown, and a line on where its numbers come from."""

from __future__ import annotations

from collections.abc import Sequence

from ....benchmarks.markdown import markdown, origin
from ...runs.results import CostResult, CostSummary, Ratio


def render(summary: CostSummary, source: str | None = None) -> str:
    """Of a summary; ``source`` is the file that holds it, for a link."""
    return f"{table(summary['results'])}\n\n{origin(dict(summary), source)}\n"


def table(records: Sequence[CostResult]) -> str:
    rows = []
    for r in records:
        memory, decode = r["dynamic_bytes"], r["decode"]
        rows.append(
            [
                r["name"],
                " → ".join(str(n) for n in r["tokens"]),
                *(f"{1e3 * times['p50']:.1f} ms" for times in (r["unpooled_seconds"], r["pooled_seconds"])),
                f"**{r['ratio']:.3f}** {bounds(r)}",
                *([f"{idle['ratio']:.3f} {bounds(idle)}"] if (idle := r["idle"]) else []),
                f"{1e3 * r['pooling_seconds']:.2f} ms",
                f"{memory[0] / memory[1]:.2f}x" if memory else "",
                f"{r['kv_bytes'][0] / r['kv_bytes'][1]:.2f}x",
                f"{decode['ratio']:.2f} {bounds(decode)}",
            ]
        )
    titles = [
        "audio",
        "tokens",
        "TTFT",
        "pooled",
        "unpooled / pooled",
        *(["where nothing merges"] if records[0]["idle"] else []),
    ]
    return markdown([*titles, "pooling", "peak memory, saved", "KV cache, saved", "decoding, faster"], rows)


def bounds(record: Ratio) -> str:
    low, high = record["ratio_ci95"]
    return f"[{low:.3f}, {high:.3f}]"
