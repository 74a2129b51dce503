"""Tests that need vLLM: ``make test-vllm`` makes an environment with it, in ``make test`` they are skipped."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if importlib.util.find_spec("vllm") is None:
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="needs vLLM: make test-vllm"))


@pytest.fixture(scope="session")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled checkpoint with the 30 s window that vLLM's Qwen2-Audio insists on."""
    from affinity_pool.study.bundled import BUNDLED
    from affinity_pool.study.experiments.serving.checkpoints import for_thirty_seconds

    folder = tmp_path_factory.mktemp("tiny-30s")
    for_thirty_seconds(BUNDLED / "checkpoint", folder)
    return folder
