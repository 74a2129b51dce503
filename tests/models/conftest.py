"""Fixtures of the patch tests: on one thread equal work gives equal bits, and nothing needs gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from random_speech import DUAL, KEPT, SPEECH, batch, speech_model


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def learning(one_thread: None) -> Iterator[None]:
    """For tests that need gradients after all."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@pytest.fixture
def no_gradients(one_thread: None) -> Iterator[None]:
    """As in training but for the gradients: inference tensors are another kind."""
    with torch.inference_mode(False), torch.no_grad():
        yield


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """accelerate remembers its precision for the whole process, and the next test has another."""
    yield
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def model() -> Any:
    return speech_model()


@pytest.fixture(params=["sdpa", "eager"])
def any_model(request: pytest.FixtureRequest) -> Any:
    return speech_model(request.param)


@pytest.fixture(params=[DUAL, KEPT], ids=["thresholds", "shares"])
def dual(request: pytest.FixtureRequest) -> Any:
    """Two sites, by either rule."""
    return request.param


@pytest.fixture
def speech() -> dict[str, torch.Tensor]:
    """Three rows with clips of 30, 17 and 8 tokens, padded on the left."""
    return batch(SPEECH)
