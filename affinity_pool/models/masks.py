"""The attention mask of a layer whose keys are not the caller's columns, in the form its attention function takes.

With ``attention="proportional"`` it also weighs keys: one that stands for n tokens gets log n added to its score, so
that it is attended to as n keys like it would be. The term is ToMe's (Bolya et al., ICLR 2023); the paper has plain
attention, where a merged token weighs as much as any other.
"""

from __future__ import annotations

import torch
from torch import Tensor


def is_supported(implementation: str) -> bool:
    """Whether :func:`attention_mask` knows this ``_attn_implementation`` (flash kernels have many names)."""
    return adds_to_scores(implementation) or ("flash" in implementation and "paged" not in implementation)


def adds_to_scores(implementation: str) -> bool:
    """Whether its masks may hold any number, to be added to scores."""
    return implementation in ("eager", "sdpa")


def log_sizes(sizes: Tensor | None) -> Tensor | None:
    """What is added to the scores of keys that stand for ``sizes [B, T]`` tokens; 0 where there is no key."""
    return None if sizes is None else sizes.clamp(min=1).float().log()


def attention_mask(
    implementation: str,
    valid: Tensor | None,
    queries: int,
    keys: int,
    like: Tensor,
    weights: Tensor | None = None,
    *,
    causal: bool = True,
) -> Tensor | None:
    """Let the last ``queries`` of ``keys`` columns see what is before them (all, unless ``causal``) and not padding.

    ``valid`` is ``[B, keys]`` bool, False in padding, or None where there is none; ``weights [B, keys]`` are added to
    scores, if given. None is returned wherever that means the same to the attention function, which then picks its
    fastest kernel.
    """
    if "flash" in implementation:
        if weights is not None:
            raise NotImplementedError(
                f"this KV cache was pooled with attention='proportional', and {implementation!r} cannot add to scores: "
                "call model.set_attn_implementation('sdpa') to go on with it"
            )
        return valid  # causality is an argument of the kernel
    alike = queries == 1 or not causal  # for all queries
    if valid is None and weights is None and (alike or (queries == keys and implementation == "sdpa")):
        return None
    visible = None if valid is None else valid[:, None, None]
    if not alike:
        before = torch.ones(queries, keys, dtype=torch.bool, device=like.device).tril_(keys - queries)[None, None]
        visible = before if visible is None else before & visible
    if implementation == "sdpa" and weights is None:
        return visible
    scores = like.new_zeros(1, 1, 1, 1) if weights is None else weights[:, None, None].to(like.dtype)
    return scores if visible is None else torch.where(visible, scores, torch.finfo(like.dtype).min)
