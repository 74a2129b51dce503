"""Tables in documents are what the results, and the cost model, say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from affinity_pool.benchmarks.render import refresh

ROOT = Path(__file__).parents[1]


def test_tables_are_what_the_results_say() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("<!-- bench:") == 5
    assert refresh(text, ROOT) == text


def test_the_page_on_costs_holds_the_model_s_tables() -> None:
    model = [sys.executable, "-m", "affinity_pool.benchmarks.without_gpu.cost_model"]
    tables = subprocess.run(model, capture_output=True, text=True, check=True).stdout.strip().split("\n\n")
    assert len(tables) == 2
    page = (ROOT / "docs" / "cost-model.md").read_text(encoding="utf-8")
    assert all(table in page for table in tables)
