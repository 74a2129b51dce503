"""Plans: which audio tokens of one recording are dropped, and which become one.

A plan is int64 ``[n]``: for each of a recording's ``n`` audio tokens the number of the output it goes to, 0 to
``n - 1``, or -1 if it is dropped. Tokens with one number become their mean, which stands where the first of them stood.

The paper's three oracle operators compress each unit of speech, say a word or the silence between two, to a number of
tokens. They know where the units are and nothing of what the tokens hold. Units follow each other without gaps from
the recording's first audio token to its last; of a unit with fewer tokens than it may keep, all stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate, pairwise
from math import floor

import torch
from torch import Tensor

from ..groups import Span


def quota(units: Sequence[Span], tokens: int | None = None, share: float | None = None) -> list[int]:
    """How many tokens each unit is to keep: at least one, and at most what it has.

    Args:
        units: of one recording.
        tokens: the paper's R, the same number for every unit.
        share: in (0, 1], instead of ``tokens``: the recording as a whole keeps exactly this share, rounded, unless that
            is less than one token a unit. Units keep it each, but for rounding and for those so short that one token is
            already more: what they take too much, the longer ones give.

    Raises:
        ValueError: not exactly one of ``tokens`` and ``share`` is given, or it is out of range.

    Example:
        >>> from affinity_pool.study.groups import Span
        >>> from affinity_pool.study.reductions import quota
        >>> quota([Span(0, 10), Span(12, 14)], share=0.3)
        [3, 1]
    """
    lengths = [end - start for start, end in units]
    if (tokens is None) == (share is None):
        raise ValueError(f"give either tokens or share, got tokens={tokens} and share={share}")
    if tokens is not None:
        if tokens < 1:
            raise ValueError(f"tokens must be at least 1 (of each unit), got {tokens}")
        return [min(tokens, length) for length in lengths]
    assert share is not None
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")

    total, longer = round(share * sum(lengths)), [length for length in lengths if length]
    while True:
        rate = Fraction(max(0, total), max(1, sum(longer)))
        short = [length for length in longer if rate * length < 1]
        if not short:
            break
        total -= len(short)
        longer = [length for length in longer if rate * length >= 1]
    wanted = (max(Fraction(min(1, length)), rate * length) for length in lengths)
    # Rounded running totals: the whole is exact, no unit is off by one or more. Half up, for with round()'s half to
    # even the step from 1.5 to 2.5 would be none.
    ends = [floor(end + Fraction(1, 2)) for end in accumulate(wanted, initial=Fraction(0))]
    return [end - start for start, end in pairwise(ends)]


def uniform_merge_plan(units: Sequence[Span], keep: Sequence[int]) -> Tensor:
    """Uniform Merge: cut unit ``u`` into ``keep[u]`` bins as equal as can be, and keep each bin's mean.

    Raises:
        ValueError: ``units`` do not follow each other from 0, or ``keep`` has not one number of at least 1 for each.

    Example:
        >>> from affinity_pool.study.groups import Span
        >>> from affinity_pool.study.reductions import uniform_merge_plan
        >>> uniform_merge_plan([Span(0, 4), Span(4, 6)], [2, 2]).tolist()
        [0, 0, 1, 1, 2, 3]
    """
    unit, place, length, kept = _tokens(units, keep)
    before = torch.tensor([0, *accumulate(map(min, keep, (end - start for start, end in units)))], dtype=torch.int64)
    return before[unit] + place * kept // length


def uniform_drop_plan(units: Sequence[Span], keep: Sequence[int]) -> Tensor:
    """Uniform Drop: keep ``keep[u]`` tokens of unit ``u`` at equal strides: the last of each bin of Uniform Merge.

    Raises:
        ValueError: as :func:`uniform_merge_plan`.

    Example:
        >>> from affinity_pool.study.groups import Span
        >>> from affinity_pool.study.reductions import uniform_drop_plan
        >>> uniform_drop_plan([Span(0, 4), Span(4, 6)], [2, 2]).tolist()
        [-1, 0, -1, 1, 2, 3]
    """
    _, place, length, kept = _tokens(units, keep)
    last = (place + 1) * kept // length > place * kept // length
    return torch.where(last, uniform_merge_plan(units, keep), -1)


def random_drop_plan(units: Sequence[Span], keep: Sequence[int], seed: int) -> Tensor:
    """Random Drop: keep ``keep[u]`` tokens of unit ``u``, each as likely as any other.

    What stays depends on the arguments alone: give every recording a seed of its own. With one seed, what stays at a
    smaller budget also stays at a larger one.

    Raises:
        ValueError: as :func:`uniform_merge_plan`.

    Example:
        >>> from affinity_pool.study.groups import Span
        >>> from affinity_pool.study.reductions import random_drop_plan
        >>> random_drop_plan([Span(0, 4), Span(4, 6)], [2, 2], seed=0).tolist()
        [0, -1, -1, 1, 2, 3]
    """
    unit, place, _, kept = _tokens(units, keep)
    n = len(unit)
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    rank = torch.empty_like(place)
    rank[torch.argsort(unit * n + shuffled)] = place  # a unit's tokens have its places, shuffled
    stays = rank < kept
    return torch.where(stays, stays.cumsum(0) - 1, -1)


def _tokens(units: Sequence[Span], keep: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each token, int64 ``[n]``: its unit, its place in it, the unit's length, and how many of the unit stay."""
    if len(keep) != len(units):
        raise ValueError(f"keep must have one number for each unit, got {len(keep)} for {len(units)} units")
    at = 0
    for number, ((start, end), kept) in enumerate(zip(units, keep, strict=True)):
        if start != at or end < start:
            raise ValueError(f"units must follow each other without gaps from 0, but after {at} comes [{start}, {end})")
        if kept < 1 and end > start:
            raise ValueError(f"keep must be at least 1 for every unit, got keep[{number}] = {kept}")
        at = end
    lengths = torch.tensor([end - start for start, end in units], dtype=torch.int64)
    starts = torch.tensor([start for start, _ in units], dtype=torch.int64)
    budget = torch.tensor(keep, dtype=torch.int64).minimum(lengths)
    unit = torch.arange(len(units)).repeat_interleave(lengths)
    return unit, torch.arange(at) - starts[unit], lengths[unit], budget[unit]
