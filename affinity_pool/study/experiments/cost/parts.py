"""Where the time of a prefill goes: encoder, pooling at each site, the layers between sites, head, and the rest.

Hooks mark when a part begins, and a part lasts until the next one begins: so the parts add up to the whole. The marks
themselves cost a few microseconds each, which is why this is a pass of its own and not the one whose time is reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import torch

from ....models import MEMORY, Layer
from ....models.modules import before_patches
from ...subject.subject import Subject

ENCODER = "encoder"
"""From the encoder's call to the decoder's, or its first layer where that calls the encoder: projector, embeddings."""
HEAD = "head"
"""From the last layer on: norm, logits, the choice of the token."""
REST = "rest"
"""What ``generate`` prepares, and the decoder's masks and rotary phases."""


def pooling(layer: Layer) -> str:
    """The part of a site: the op, and the mask, phases and bookkeeping for the layers after it."""
    if layer == MEMORY:
        return f"pooling, {MEMORY}"
    return f"pooling, layer {layer}" if layer else "pooling, input"


def stretch(first: int, last: int) -> str:
    """The part of decoder layers ``first`` to ``last``."""
    return f"layers {first}-{last}" if last > first else f"layer {first}"


class Timeline:
    """Marks on the clock of a device: the host's for a CPU, a CUDA stream's own for a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []

    def begin(self, part: str) -> None:
        """From here on time belongs to ``part``."""
        mark: Any = torch.cuda.Event(enable_timing=True) if self._cuda else time.perf_counter()
        if self._cuda:
            mark.record()
        self._marks.append((part, mark))

    def seconds(self) -> dict[str, float]:
        """Of each part, in the order of their first beginnings; the last mark ends the part before it."""
        if self._cuda:
            torch.cuda.synchronize()
        total: dict[str, float] = {}
        for (part, begin), (_, end) in pairwise(self._marks):
            passed = begin.elapsed_time(end) / 1e3 if self._cuda else end - begin
            total[part] = total.get(part, 0.0) + passed
        return total


def timed_parts(subject: Subject, run: Callable[[], object], sites: Sequence[Layer], pooled: bool) -> dict[str, float]:
    """Seconds of each part of ``run``, one prefill of ``subject``.

    Layers are told apart at the layers ``sites`` whether or not the model is patched, so that both can be compared;
    if it is, ``pooled``, what happens in the patch's hooks there is a part too. Memory is pooled at the first layer.
    """
    layers = subject.layers
    line = Timeline(subject.device)

    def beginning(part: str) -> Callable[..., None]:
        return lambda *_: line.begin(part)

    firsts = sorted({0, *(layer for layer in sites if isinstance(layer, int))})
    with ExitStack() as hooks:
        hooks.callback((subject.encoder or subject.model).register_forward_pre_hook(beginning(ENCODER)).remove)
        hooks.callback(subject.decoder.register_forward_pre_hook(beginning(REST)).remove)
        for first, following in pairwise([*firsts, len(layers)]):
            site: Layer = MEMORY if MEMORY in sites else first
            if pooled and site in sites:  # the patch's own hook runs between these two
                hooks.callback(before_patches(layers[first], beginning(pooling(site))))
            hook = layers[first].register_forward_pre_hook(beginning(stretch(first, following - 1)))
            hooks.callback(hook.remove)
        hooks.callback(layers[-1].register_forward_hook(beginning(HEAD)).remove)
        line.begin(REST)
        run()
        line.begin("end")
    return line.seconds()
