"""The attention mask of a layer whose keys are not the caller's columns, in the form its attention function takes."""

from __future__ import annotations

import torch
from torch import Tensor


def is_supported(implementation: str) -> bool:
    """Whether :func:`attention_mask` knows this ``_attn_implementation`` (flash kernels have many names)."""
    return implementation in ("eager", "sdpa") or ("flash" in implementation and "paged" not in implementation)


def attention_mask(implementation: str, valid: Tensor | None, queries: int, keys: int, like: Tensor) -> Tensor | None:
    """Let the last ``queries`` of ``keys`` columns see what is before them and not padding.

    ``valid`` is ``[B, keys]`` bool, False in padding, or None where there is none. None is returned wherever that means
    the same to the attention function, which then picks its fastest kernel.
    """
    if "flash" in implementation:
        return valid  # causality is an argument of the kernel
    if valid is None and (queries == 1 or (queries == keys and implementation == "sdpa")):
        return None
    if queries == 1:
        visible = valid[:, None, None]  # type: ignore[index]  # a None returned above
    else:
        visible = torch.ones(queries, keys, dtype=torch.bool, device=like.device).tril_(keys - queries)[None, None]
        if valid is not None:
            visible = visible & valid[:, None, None]
    if implementation == "sdpa":
        return visible
    blocked = torch.finfo(like.dtype).min
    return torch.zeros(visible.shape, dtype=like.dtype, device=like.device).masked_fill_(~visible, blocked)
