"""The table of what a cost study measured, in Markdown, and a line on where its numbers come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ....bench.table import markdown, origin

Record = dict[str, Any]


def render(summary: Record, source: str | None = None) -> str:
    """Of a summary; ``source`` is the file that holds it, for a link."""
    return f"{table(summary['results'])}\n\n{origin(summary, source)}\n"


def table(records: Sequence[Record]) -> str:
    idle = records[0]["idle"] is not None
    rows = []
    for r in records:
        memory, decode = r["dynamic_bytes"], r["decode"]
        rows.append(
            [
                r["name"],
                " → ".join(str(n) for n in r["tokens"]),
                *(f"{1e3 * r[which]['p50']:.1f} ms" for which in ("unpooled_seconds", "pooled_seconds")),
                f"**{r['ratio']:.3f}** {bounds(r)}",
                *([f"{r['idle']['ratio']:.3f} {bounds(r['idle'])}"] if idle else []),
                f"{1e3 * r['pooling_seconds']:.2f} ms",
                f"{memory[0] / memory[1]:.2f}x" if memory else "",
                f"{r['kv_bytes'][0] / r['kv_bytes'][1]:.2f}x",
                f"{decode['ratio']:.2f} {bounds(decode)}",
            ]
        )
    titles = ["audio", "tokens", "TTFT", "pooled", "unpooled / pooled", *(["where nothing merges"] if idle else [])]
    return markdown([*titles, "pooling", "peak memory, saved", "KV cache, saved", "decoding, faster"], rows)


def bounds(record: Record) -> str:
    low, high = record["ratio_ci95"]
    return f"[{low:.3f}, {high:.3f}]"
