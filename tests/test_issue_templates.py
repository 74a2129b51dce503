"""What an issue is asked for: forms that GitHub takes, and a command that there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from affinity_pool.cli.commands import app

yaml = pytest.importorskip("yaml")  # transformers brings it
FOLDER = Path(__file__).parents[1] / ".github" / "ISSUE_TEMPLATE"
FORMS = sorted(path.stem for path in FOLDER.glob("*.yml") if path.stem != "config")
KINDS = {"markdown", "textarea", "input", "dropdown", "checkboxes"}


def form(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yml").read_text())


def required(name: str) -> set[str]:
    return {field["id"] for field in form(name)["body"] if field.get("validations", {}).get("required")}


@pytest.mark.parametrize("name", FORMS)
def test_github_takes_the_form(name: str) -> None:
    read = form(name)
    assert {*read} <= {"name", "description", "labels", "body"}
    assert all(isinstance(read[key], str) and read[key] for key in ("name", "description"))
    fields = read["body"]
    assert {field["type"] for field in fields} <= KINDS
    asked = [field for field in fields if field["type"] != "markdown"]
    assert all(re.fullmatch(r"[\w-]+", field["id"]) for field in asked)
    assert len({field["id"] for field in asked}) == len({field["attributes"]["label"] for field in asked}) == len(asked)
    assert {*(key for field in fields for key in field)} <= {"type", "id", "attributes", "validations"}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_asks_for_what_env_prints(name: str) -> None:
    (command,) = {*re.findall(r"`affinity-pool (.*?)`", str(form(name)))}
    command, option = command.split()
    options = get_command(app).commands[command].params
    assert option in [name for parameter in options for name in parameter.opts]


def test_what_cannot_be_answered_without_is_required() -> None:
    assert required("bug") == {"snippet", "happened", "env"}
    assert required("model-family") == {"class", "checkpoint", "transformers", "config", "env"}


def test_issues_of_another_kind_can_be_opened() -> None:
    assert form("config") == {"blank_issues_enabled": True}
