"""The pages of docs/study can be made from what is committed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_every_page_of_the_study_is_made_from_its_summary(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "docs" / "make_pages.py", tmp_path], check=True, capture_output=True)
    pages = {path.parent.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*/index.html")}
    listed = (ROOT / "docs" / "study" / "README.md").read_text(encoding="utf-8")
    assert len(pages) == 25
    for name, page in pages.items():
        assert f"[{name}](" in listed
        assert page.startswith("<!doctype html>")
        assert page.endswith("</html>\n")
    assert (tmp_path / "oracle" / "wer-26.png").read_bytes()
