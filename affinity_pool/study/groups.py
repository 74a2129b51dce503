"""Follow audio tokens through the sites: which group each one ends up in, all the way from the encoder's frames.

A :class:`Picture` is all that ``report.groups_picture`` draws of one recording.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from .data.manifest import Word


class SiteMap(Protocol):
    """What is needed of :class:`affinity_pool.models.SiteStats`."""

    @property
    def segment_ids(self) -> Tensor:
        """``[B, T]``: the column each column went to, right-aligned as ``generate`` pads; -1 if nowhere."""


class Span(NamedTuple):
    """Audio tokens ``start`` to ``end`` (exclusive), counted from the first one of the recording."""

    start: int
    """The first token."""
    end: int
    """The one behind the last."""


def spans_after_sites(sites: Sequence[SiteMap], audio: Tensor, row: int = 0) -> list[list[Span]]:
    """The groups left after each site, as spans of the original audio tokens.

    Args:
        sites: in layer order, the stats of one prefill. The columns entering a site are the last ones of the output of
            the site before it: padding is on the left.
        audio: ``[B, T]`` bool, the audio tokens among the columns of the prompt.
        row: of the batch.

    Returns:
        One list a site. Its spans are in order and disjoint; with pooling they cover every audio token.
    """
    column = audio[row].nonzero().flatten().cpu()
    width = audio.shape[1]
    result = []
    for site in sites:
        ids = site.segment_ids[row].cpu().long()
        column = column - (width - ids.shape[0])  # the site before narrowed its output to the rows still in use
        width = ids.shape[0]
        column = torch.where(column >= 0, ids[column.clamp(min=0)], -1)
        result.append(_spans(column.tolist()))
    return result


def _spans(columns: Sequence[int]) -> list[Span]:
    """Runs of equal, not dropped columns."""
    return [
        Span(run[0][0], run[-1][0] + 1)
        for column, group in groupby(enumerate(columns), key=lambda item: item[1])
        if column >= 0 and (run := list(group))
    ]


def containing(inner: Sequence[Span], outer: Sequence[Span]) -> list[int | None]:
    """For each span of ``inner`` the index of the span of ``outer`` it lies in, None where none holds it."""
    found: list[int | None] = []
    at = 0
    for span in inner:
        while at < len(outer) and outer[at].end <= span.start:
            at += 1
        found.append(at if at < len(outer) and outer[at].start <= span.start else None)
    return found


@dataclass(frozen=True)
class Row:
    """One line of bars: the audio tokens, or the groups left after a site."""

    name: str
    detail: str
    spans: Sequence[Span]


@dataclass(frozen=True)
class Picture:
    """All that is drawn."""

    title: str
    mel: np.ndarray
    """``[bins, frames]`` log-mel spectrogram of the recording, without the padding."""
    seconds: float
    frame_seconds: float
    words: Sequence[Word]
    rows: Sequence[Row]
    """The encoder's tokens, then what is left after each site."""
    independent: bool = False
    """Each row is made of the first one, not of the row before."""

    @property
    def end(self) -> float:
        """Seconds at the right edge: the last token may reach past the recording."""
        return max(self.seconds, self.rows[0].spans[-1].end * self.frame_seconds)
