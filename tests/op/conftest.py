"""Fixtures of the op's tests. Uninitialised memory is poisoned throughout: NaN in floats, the largest value in ints."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from .implementations import IMPLEMENTATIONS, Implementation


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "each_instruction_set: runs again, by test_instruction_sets.py, for every CPU instruction set here"
    )


@pytest.fixture(scope="session", params=IMPLEMENTATIONS, ids=lambda implementation: implementation.name)
def implementation(request: pytest.FixtureRequest) -> Implementation:
    why_not = request.param.missing()
    if why_not:
        pytest.skip(why_not)
    return request.param


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    deterministic, fill = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic
    before = fill.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    fill.fill_uninitialized_memory = True
    yield
    fill.fill_uninitialized_memory = before
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tests that are about threads say so."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
