"""The most memory a run takes at once beside what was there before it: the weights and the inputs."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable

import torch


def peak_bytes(run: Callable[[], object], device: torch.device) -> int | None:
    """Bytes of tensors, by the allocator's own account; None on a device that keeps none.

    On a GPU its allocator knows the peak. On the CPU torch's profiler hears of every allocation and release of tensor
    memory, and the peak is that of their running sum: unlike the resident memory of the process it is exact, and the
    same in each run. What a kernel takes and gives back by itself, such as a matrix library's packing buffers, is in
    neither.
    """
    gc.collect()  # what cycles hold of the runs before would be counted as there, and freed in between
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    return _peak_on_cpu(run) if device.type == "cpu" else None


def _peak_on_cpu(run: Callable[[], object]) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch 2.13 writes two lines to stderr for each profile
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        run()
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
