"""Runs a test's body in a process of its own, so that a kernel that never ends fails one test and not the whole run."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable

import affinity_pool

LIMIT = 90  # seconds; importing torch, compiling a Triton kernel and making a context take most of it


def run(body: Callable[..., None], backend: str, *arguments: object) -> None:
    """Call ``body(*arguments)`` with ``backend`` at work, in a child; fail if it fails, crashes or does not end."""
    child = multiprocessing.get_context("spawn").Process(target=_with, args=(body, backend, *arguments))
    child.start()
    child.join(LIMIT)
    hung = child.is_alive()
    child.kill()
    child.join()
    assert not hung, f"{body.__name__} did not end in {LIMIT} s"
    assert child.exitcode == 0, f"{body.__name__} ended with {child.exitcode}; what it said is above"


def _with(body: Callable[..., None], backend: str, *arguments: object) -> None:
    with affinity_pool.use(backend):
        body(*arguments)
