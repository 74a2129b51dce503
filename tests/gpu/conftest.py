"""Every test of this folder runs once for each GPU backend there is, on memory that is poisoned before use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import affinity_pool


@pytest.fixture(scope="module", params=["cuda", "triton"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The one at work, in eager calls and captured ones."""
    found = next(b for b in affinity_pool.backends() if b.name == request.param)
    if not found.available:
        pytest.skip(f"{found.name}: {found.detail}")
    with affinity_pool.use(found.name):
        yield found.name


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    deterministic, fill = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic
    warn_only, before = torch.is_deterministic_algorithms_warn_only_enabled(), fill.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch's own scatter and cuBLAS are not at issue
    fill.fill_uninitialized_memory = True
    yield
    fill.fill_uninitialized_memory = before
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
