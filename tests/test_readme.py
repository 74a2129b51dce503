"""README's tables are the committed results."""

from __future__ import annotations

from pathlib import Path

from affinity_pool.bench.table import refresh

ROOT = Path(__file__).parents[1]


def test_tables_are_what_the_results_say() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("<!-- bench:") == 2
    assert refresh(text, ROOT) == text
