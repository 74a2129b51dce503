"""What all tests share: hypothesis profiles, one thread, and GPU tests that skip, in words, where there is no GPU.

Models here are small, and ``make test`` runs as many tests at once as there are cores: threads of one test would wait
at each barrier for a core that another test has. Tests about threads ask for them.

``HYPOTHESIS_PROFILE=thorough`` looks longer, at new inputs each time; the default is quick and, in CI, always the same.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in what tests start

import hypothesis
import pytest

hypothesis.settings.register_profile("quick", max_examples=30, deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.register_profile("brief", max_examples=8, deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile("thorough", max_examples=2000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


LONGEST = (
    "test_the_site_is_built_and_all_links_lead_somewhere",
    "test_the_claims_hold_in_the_interpreter",
    "test_sanitizers_find_nothing",
    "test_the_op_keeps_its_contract",
    "test_a_compiled_step_has_the_same_gradients",
    "test_two_processes_learn_what_one_learns_from_both_their_rows",
)
"""Half a minute and more: they begin first, or one core would wait for another that has them left at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: getattr(item, "originalname", None) not in LONGEST)
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_tests:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_tests:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
