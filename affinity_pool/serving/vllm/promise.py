"""How many rows a clip is left, promised when its placeholders are written and kept when it is encoded."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...pooling import pool_to
from ...reference import rows_left


class Promise(NamedTuple):
    """Of one clip."""

    rows: int
    """That go into the language model: as many as there are placeholders."""
    encoded: int
    """That the encoder makes, by the model's own formula."""


class Cut(NamedTuple):
    """The tokens that stand for a clip, with fewer placeholders among them."""

    tokens: list[int]
    is_embed: Tensor
    """``[len(tokens)]`` bool: which are placeholders."""
    promise: Promise


def cut(tokens: list[int], is_embed: Tensor | None, keep: float) -> Cut:
    """Take the last placeholders out of what stands for a clip, until a share ``keep`` of them is left.

    Args:
        tokens: placeholders, and text among and around them, which stays.
        is_embed: ``[len(tokens)]`` bool, which are placeholders; None: all are.
        keep: share in (0, 1].
    """
    mask = torch.ones(len(tokens), dtype=torch.bool) if is_embed is None else is_embed.bool()
    places = mask.nonzero().flatten()
    encoded = len(places)
    rows = rows_left(encoded, keep)
    stays = torch.ones(len(tokens), dtype=torch.bool)
    stays[places[rows:]] = False
    kept = [token for token, stay in zip(tokens, stays.tolist(), strict=True) if stay]
    return Cut(kept, mask[stays], Promise(rows, encoded))


def keep_promise(clip: Tensor, promise: Promise) -> Tensor:
    """Pool a clip's rows ``[encoded, D]`` to those promised, ``[rows, D]``.

    Where the encoder has made another number than the formula says, vLLM itself cuts off what is too much, and ends at
    what is missing. The promise is kept all the same, of all the rows that there are.

    Raises:
        RuntimeError: there are fewer than were promised.
    """
    if clip.shape[0] < promise.rows:
        raise RuntimeError(
            f"the encoder made {clip.shape[0]} rows of a clip for which vLLM's formula says {promise.encoded}, "
            f"and {promise.rows} are promised to the language model"
        )
    return clip if clip.shape[0] == promise.rows else pool_to(clip, promise.rows).values
