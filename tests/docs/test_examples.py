"""Every public function has an example in its docstring, and every example does what it says."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path
from typing import Any

import pytest
from public import MODULES

import affinity_pool
import affinity_pool.models

ROOT = Path(__file__).parents[2]
FUNCTIONS = {
    f"{function.__module__}.{function.__qualname__}": function
    for module in MODULES
    for name in module.__all__
    if inspect.isfunction(function := getattr(module, name))
} | {
    f"reference.{name}": getattr(affinity_pool.reference, name)
    for name in ("pool", "pool_padded", "pool_to", "pool_padded_to")
}
CLASSES = [affinity_pool.AffinityPooler, affinity_pool.Site, affinity_pool.models.Handle]
"""What is not only returned, but made or used by callers."""


def examples(documented: Any) -> list[doctest.DocTest]:
    return [test for test in doctest.DocTestFinder().find(documented) if test.examples]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_example_of_a_function_is_right(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(FUNCTIONS[name], monkeypatch)


@pytest.mark.parametrize("documented", CLASSES, ids=lambda documented: documented.__name__)
def test_the_examples_of_a_class_are_right(documented: type, monkeypatch: pytest.MonkeyPatch) -> None:
    check(documented, monkeypatch)


def check(documented: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where the bundled model is found by the name that examples give it
    found = examples(documented)
    assert found, "no example"
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in found:
        test.globs = {}  # an example imports what it needs: it can be copied as it stands
        runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)


def test_there_are_functions_in_every_module() -> None:
    assert len(FUNCTIONS) > 20
    assert {name.split(".")[1] for name in FUNCTIONS} >= {"pooling", "models", "serving", "study"}
