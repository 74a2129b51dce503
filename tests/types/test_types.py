"""Types as a checker sees them from outside, through py.typed and the names that are imported on first use."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="mypy is not installed")
ROOT = Path(__file__).parents[2]
USER = Path(__file__).with_name("user.py")


def test_a_users_program_has_the_types_that_it_should() -> None:
    """All of ``assert_type`` hold, each line that is marked is refused for what is named, and no other is."""
    marked = [line.partition("  # refused: ") for line in USER.read_text().splitlines()]
    refused = {at: word for at, (_, mark, word) in enumerate(marked, 1) if mark}
    assert len(refused) == 7
    command = [sys.executable, "-m", "mypy", "--no-pretty", "--hide-error-context", str(USER.relative_to(ROOT))]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1, run.stdout + run.stderr
    errors = re.findall(r"^.*user\.py:(\d+): error: (.*)$", run.stdout, re.MULTILINE)
    assert {int(at) for at, _ in errors} == {*refused}, run.stdout
    for at, word in refused.items():
        assert any(word in error for line, error in errors if int(line) == at), run.stdout
