"""What the last prefill with audio did: tokens before and after each site, the groups, and the KV bytes saved."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from .sites import Layer, Site, number


@dataclass(frozen=True, eq=False)
class SiteStats:
    """One site in the last prefill; lists have one entry for each row of the batch, padding never counts."""

    layer: Layer
    """Where the site is."""
    threshold: float | None
    """What this prefill went by: of a site with a range the one that was drawn. None where ``keep`` is, or a reduction
    of one's own took its place."""
    keep: float | None
    """The same of a share."""
    tokens_before: list[int]
    """Of each row, text and audio, that entered the site."""
    tokens_after: list[int]
    """That left it."""
    audio_before: list[int]
    """The audio tokens among those that entered."""
    audio_after: list[int]
    """Among those that left."""
    segment_ids: Tensor = field(repr=False)
    """``[B, T]`` int32 over the columns that entered the site: the column of the output each went to, -1 if none."""
    counts: Tensor = field(repr=False)
    """``[B, T]`` int32 over the same columns, filled from the right (in ``"memory"`` from the left): tokens in each
    group, 0 where there is none."""

    @property
    def audio_kept(self) -> float:
        """Share of the audio tokens entering this site that leave it, over the whole batch."""
        return sum(self.audio_after) / max(1, sum(self.audio_before))


@dataclass(frozen=True, eq=False)
class PrefillStats:
    """The last prefill that carried audio."""

    sites: tuple[SiteStats, ...]
    """In the order of their layers."""
    kv_bytes: int
    """Keys and values of the prompt in all decoder layers, padding included: as cached, or as a cache would be."""
    kv_bytes_saved: int
    """What the same prompt would have taken more without pooling."""


@dataclass
class SiteRecord:
    """A site's tensors, kept as they came: figures are read from them only when someone asks."""

    site: Site
    """As drawn, of a site with a range."""
    audio: Tensor
    """``[B, T]`` bool, False in padding."""
    before: list[int]
    after: list[int]
    segment_ids: Tensor
    counts: Tensor

    def stats(self) -> SiteStats:
        audio = self.audio.sum(1).tolist()
        kept = [a - (b - c) for a, b, c in zip(audio, self.before, self.after, strict=True)]
        site = self.site
        keep = None if site.keep is None else number(site.keep)
        threshold = None if site.reduction is not None or keep is not None else number(site.threshold)
        figures = (self.before, self.after, audio, kept, self.segment_ids, self.counts)
        return SiteStats(site.layer, threshold, keep, *figures)


def prefill_stats(records: list[SiteRecord], depths: list[int], bytes_per_column: int) -> PrefillStats:
    """Sum the widths of all layers; a site that merges nothing in any row changes no width.

    ``depths`` names for each layer that keeps keys the last layer whose site its input has passed: its own number,
    unless it belongs to a branch.
    """
    rows, unpooled = records[0].audio.shape
    columns = 0
    for depth in depths:
        passed = [record for record in records if isinstance(at := record.site.layer, str) or at <= depth]
        merging = [record for record in passed if record.before != record.after]
        columns += max(merging[-1].after) if merging else unpooled
    per_column = rows * bytes_per_column
    return PrefillStats(
        tuple(record.stats() for record in records),
        columns * per_column,
        (len(depths) * unpooled - columns) * per_column,
    )
