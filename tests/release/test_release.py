"""What a release says of itself: one version, its notes, how to cite it, and the table of what was tried."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import notes
import pytest

import affinity_pool
from affinity_pool.benchmarks.render import render

ROOT = Path(__file__).parents[2]
CHECKED = json.loads((ROOT / "benchmarks" / "results" / "wheel" / "check.json").read_text(encoding="utf-8"))


def test_the_version_stands_in_one_place() -> None:
    assert notes.version() == affinity_pool.__version__
    for name in ("pyproject.toml", "setup.py", "CITATION.cff", "Makefile", "docs/releasing.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        written = re.sub(r"<!-- bench:.*?<!-- /bench -->", "", text, flags=re.DOTALL)
        assert affinity_pool.__version__ not in re.findall(r"\d+(?:\.\d+)+", written), name


def test_the_changelog_has_notes_for_this_version() -> None:
    printed = subprocess.run([sys.executable, notes.__file__], capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout.startswith("- ")


def test_notes_are_the_section_of_one_version() -> None:
    changelog = "# Changelog\n\n## 0.2.0 (unreleased)\n\n- New.\n\n### More\n\n## 0.1.0\n\n- Old.\n\n## 0.0.1\n\n"
    assert notes.notes(changelog, "0.2.0") == "- New.\n\n### More\n"
    assert notes.notes(changelog, "0.1.0") == "- Old.\n"
    for nothing in ("0.0.1", "0.2", "3"):
        with pytest.raises(ValueError, match=f"CHANGELOG.md has no section '## {nothing}', or nothing in it"):
            notes.notes(changelog, nothing)


def test_the_citation_is_of_the_paper_that_the_readme_names() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert "2604.06871" in citation
    assert "2604.06871" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert not re.search(r"^(version|date-released):", citation, re.MULTILINE)


def test_what_was_tried_is_one_wheel_of_a_commit_and_no_cell_fails() -> None:
    (wheel,) = CHECKED["wheels"].values()
    assert wheel["commit"]
    assert not wheel["uncommitted"]
    assert "-cp310-abi3-manylinux_2_28_" in wheel["file"]
    assert wheel["bytes"] < 2e6
    assert {record["outcome"] for record in CHECKED["results"]} <= {"passes", "not had"}


def test_what_was_tried_has_the_oldest_and_the_newest_and_an_old_system() -> None:
    passed = [record["found"] for record in CHECKED["results"] if record["outcome"] == "passes"]
    pythons = {tuple(map(int, found["python"].split(".")[:2])) for found in passed}
    torches = {tuple(map(int, re.findall(r"\d+", found["torch"])[:2])) for found in passed}
    assert pythons >= {(3, 10), (3, 11), (3, 12), (3, 13), (3, 14)}
    assert torches >= {(2, 10), (2, 11), (2, 12), (2, 13), (2, 14)}
    assert {bool(found["cuda"]) for found in passed} == {True, False}
    assert min(float(found["glibc"].split(".")[1]) for found in passed) < 34


def test_a_cell_that_was_not_had_says_why() -> None:
    why = {
        "python": "3.99",
        "torch": "2.14.1",
        "outcome": "not had",
        "why": "there is no Python 3.99 here",
        "seconds": 0,
    }
    first = CHECKED["results"][0]
    table = render({**CHECKED, "results": [first, {**first, **why}]})
    assert "| 3.99 | 2.14.1 |  |  | not had: there is no Python 3.99 here | 0 |" in table.splitlines()
    assert table.count("sees no NVIDIA GPU") == 1
