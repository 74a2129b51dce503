"""Tests that need vLLM: ``make test-vllm`` makes an environment with it; where there is none, each file is skipped."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled checkpoint with the 30 s window that vLLM's Qwen2-Audio insists on."""
    from affinity_pool.study.bundled import BUNDLED
    from affinity_pool.study.experiments.serving.checkpoints import for_thirty_seconds

    folder = tmp_path_factory.mktemp("tiny-30s")
    for_thirty_seconds(BUNDLED / "checkpoint", folder)
    return folder
