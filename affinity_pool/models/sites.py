"""A site: where in a model tokens are pooled, and by which rule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from ..checks import check_rule, check_share
from ..pooling import pool_padded, pool_padded_to
from ..results import PooledPadded

MEMORY: Literal["memory"] = "memory"
"""The site of an encoder-decoder model: what its decoder attends to, the encoder's output."""

Layer = int | Literal["memory"]

THRESHOLD, WINDOW = 0.8, 3  # of a site that is given neither

Reduction = Callable[[Tensor, Tensor | None, Tensor], PooledPadded]
"""A method of one's own: takes what :meth:`Site.reduce` takes, returns what it returns; see docs/extending.md."""


@dataclass(frozen=True)
class Site:
    """Pool the hidden states that enter decoder layer ``layer``; layer 0 is the language model's input.

    In an encoder-decoder model such as Whisper the one site is ``"memory"``, the encoder's output, which the decoder's
    layers attend to.

    By a threshold, as the paper does, or to a share of the tokens: then how many are left is known beforehand.

    Either may be a range, ``(0.85, 1.0)``: a model in training mode draws one of it for each prefill, uniformly and by
    torch's CPU generator, as dropout does; in evaluation mode it takes the one that leaves the fewest tokens.

    Example:
        >>> from affinity_pool import Site
        >>> Site(29, threshold=0.8, window=3)
        Site(layer=29, threshold=0.8, window=3, reduction=None, keep=None)
        >>> Site(0, keep=(0.4, 1.0)).drawn(training=False).keep
        0.4
    """

    layer: Layer
    """A decoder layer's number, counted from 0, or ``"memory"``."""
    threshold: float | tuple[float, float] | None = None
    """None: 0.8, or not used, where ``keep`` is given."""
    window: int | None = None
    """None: 3, or not used, where ``keep`` is given."""
    reduction: Reduction | None = None
    """What is done there instead of Affinity Pooling, to which threshold and window belong."""
    keep: float | tuple[float, float] | None = None
    """The share of each run of audio tokens that is left, in (0, 1]. Always a share: 1 is all of them, where an int
    given to :func:`affinity_pool.pool_to` is a number of rows."""

    def __post_init__(self) -> None:
        if isinstance(self.layer, bool) or not isinstance(self.layer, (int, str)):
            raise TypeError(f"layer must be an int (0 is the input site) or {MEMORY!r}, got {self.layer!r}")
        if isinstance(self.layer, str) and self.layer != MEMORY:
            raise ValueError(f"layer must be an int (0 is the input site) or {MEMORY!r}, got {self.layer!r}")
        if isinstance(self.layer, int) and self.layer < 0:
            raise ValueError(f"layer must be 0 (the input site) or more, got {self.layer}")
        if self.reduction is not None and not callable(self.reduction):
            raise TypeError(f"reduction must be a function of (x, lengths, mergeable) or None, got {self.reduction!r}")
        if self.keep is not None:
            self._check_keep(self.keep)
            return
        threshold = THRESHOLD if self.threshold is None else self.threshold
        window = WINDOW if self.window is None else self.window
        ends = _ends("threshold", threshold)
        for end in ends:
            check_rule(end, window)
            float(end)  # raises OverflowError: an integer that no float can hold
        object.__setattr__(self, "threshold", ends if len(ends) == 2 else threshold)
        object.__setattr__(self, "window", window)

    @property
    def is_ranged(self) -> bool:
        """Whether its number is drawn in training."""
        return isinstance(self.threshold if self.keep is None else self.keep, tuple)

    def drawn(self, training: bool) -> Site:
        """The site with a number in place of its range, if it has one: drawn in training, else its lower end."""
        for name in ("threshold", "keep"):
            if isinstance(ends := getattr(self, name), tuple):
                low, high = ends
                at = torch.rand((), dtype=torch.float64, device="cpu").item() if training else 0.0
                return replace(self, **{name: min(max(low, (1 - at) * low + at * high), high)})
        return self

    def _check_keep(self, keep: float | tuple[float, float]) -> None:
        for name in ("threshold", "window", "reduction"):
            if (given := getattr(self, name)) is not None:
                raise ValueError(
                    f"keep={keep!r} and {name}={given!r} are two rules for one site: give a share to keep, or a "
                    "threshold and a window, or a reduction"
                )
        # An int 1 is what JSON may write; there are no counts here that it could be taken for.
        ends = tuple(1.0 if type(end) is int and end == 1 else end for end in _ends("keep", keep))
        for end in ends:
            check_share(end)
        object.__setattr__(self, "keep", ends if len(ends) == 2 else ends[0])

    def reduce(
        self, x: Tensor, lengths: Tensor | None, mergeable: Tensor | None, *, left_padded: bool = True
    ) -> PooledPadded:
        """What goes on from here.

        Args:
            x: ``[B, T, D]`` what enters the layer, padded on the left unless ``left_padded`` is False.
            lengths: ``[B]`` int32, the rows of each sequence that are not padding; None: all are.
            mergeable: ``[B, T]`` bool, the audio tokens among the rows; None: all are.

        Returns:
            As :func:`affinity_pool.pool_padded`, padded on the same side; of a range as in evaluation mode. Text is
            passed on as it is, in order. A row that goes nowhere has -1 in ``segment_ids``; what is passed on has the
            rotary phase of the first row with its id.

        Example:
            >>> import torch
            >>> from affinity_pool import Site
            >>> reduced = Site(0, keep=0.5).reduce(torch.randn(1, 6, 8), None, None)
            >>> reduced.lengths.tolist()
            [3]
        """
        if (fixed := self.drawn(training=False)) is not self:
            return fixed.reduce(x, lengths, mergeable, left_padded=left_padded)
        if self.reduction is not None:
            audio = x.new_ones(x.shape[:2], dtype=torch.bool) if mergeable is None else mergeable
            if left_padded:
                return self.reduction(x, lengths, audio)
            return _right_padded(self.reduction, x, lengths, audio)
        if self.keep is not None:
            return pool_padded_to(x, number(self.keep), lengths, mergeable=mergeable, left_padded=left_padded)
        assert self.window is not None
        threshold = number(self.threshold)
        return pool_padded(
            x, lengths, mergeable=mergeable, threshold=threshold, window=self.window, left_padded=left_padded
        )


def number(given: float | tuple[float, float] | None) -> float:
    """The threshold, or the share, of a site that has one and whose range has been drawn from."""
    assert isinstance(given, (int, float))
    return given


def _ends(name: str, given: Any) -> tuple[Any, ...]:
    """Both ends of a range, or the one number."""
    if not isinstance(given, (tuple, list)):
        return (given,)
    if len(given) != 2 or any(isinstance(end, bool) or not isinstance(end, Real) for end in given):
        raise ValueError(f"{name} must be a number or a range of two, (low, high), got {given!r}")
    if not all(map(math.isfinite, given)) or given[0] > given[1]:
        raise ValueError(f"{name} must be a range from low to high, both finite, got {given!r}")
    return tuple(end if isinstance(end, int) else float(end) for end in given)


def _right_padded(reduction: Reduction, x: Tensor, lengths: Tensor | None, audio: Tensor) -> PooledPadded:
    """A reduction, which takes and returns padding on the left, of a batch that is padded on the right."""
    columns = x.shape[1]
    if lengths is not None:
        x, audio = _rolled(x, columns - lengths), _rolled(audio, columns - lengths)
    values, left, ids, counts = reduction(x, lengths, audio)
    ids = torch.where(ids < 0, ids, ids - (columns - left[:, None]))
    if lengths is not None:
        ids = _rolled(ids, lengths - columns)
    return PooledPadded(_rolled(values, left - columns), left, ids, _rolled(counts, left - columns))


def _rolled(x: Tensor, right: Tensor) -> Tensor:
    """Columns of ``x [B, T, ...]``, those of row ``b`` moved ``right[b]`` to the right and around the end."""
    column = (torch.arange(x.shape[1], device=x.device) - right[:, None]) % x.shape[1]
    return x[torch.arange(x.shape[0], device=x.device)[:, None], column]
