"""Measurements in Markdown: a table, and the line under it on where its numbers come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

ON_CPU = ("quick", "target", "headline", "sweep", "counts", "overhead")  # an instruction set is part of the story


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def origin(results: dict[str, Any], source: str | None) -> str:
    """Machine, versions, commit and date of a results file; ``source`` is the way to it from a document, for a link."""
    p = results["provenance"]
    commit = f"commit {p['commit'][:10]}" if p["commit"] else f"sources {p['sources']}"
    facts = [
        p["device"],
        f"{p['cores']} cores",
        *([p["backends"]["cpu"]] if results["suite"] in ON_CPU else []),
        f"torch {p['versions']['torch']}",
        commit + (" and changes" if p["uncommitted"] else ""),
        p["date"][:10],
        f"medians of up to {results['method']['rounds']} interleaved rounds",
    ]
    if results.get("partial"):
        facts.insert(0, f"**partial, {len(results['results'])} cases**")
    return f"{', '.join(facts)}" + (f": [{source.lstrip('./')}]({source})" if source else "") + "."
