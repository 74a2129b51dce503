"""A forward of one row pooled by the paper's loop, layer by layer: no hook, cache or padding. Autograd follows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from random_speech import AUDIO, qwen2
from torch import Tensor

from affinity_pool import reference
from affinity_pool.models import Site


def pooled_at(site: Site, hidden: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states ``[T, D]`` pooled by the site's rule, and the row at which each that is left began."""
    if site.keep is None:
        out = reference.pool(hidden, mergeable=audio, threshold=site.threshold, window=site.window)
    else:
        out = reference.pool_to(hidden, site.keep, mergeable=audio)
    return out.values, torch.cumsum(out.counts, 0) - out.counts


def pooled_forward(
    model: Any, inputs: dict[str, Tensor], sites: Sequence[Site], positions: str
) -> tuple[Tensor, Tensor]:
    """Logits of one row, and the column at which each of those that are left began."""
    decoder = qwen2(model)
    caught: list[Tensor] = []
    hook = decoder.layers[0].register_forward_pre_hook(lambda layer, args: caught.append(args[0]))
    model(**inputs)
    hook.remove()
    hidden = caught[0][0]
    audio = inputs["input_ids"][0] == AUDIO
    phase = column = torch.arange(hidden.shape[0])
    for index, layer in enumerate(decoder.layers):
        for site in sites:
            if site.layer == index:
                hidden, first = pooled_at(site, hidden, audio)
                audio, phase, column = audio[first], phase[first], column[first]
                if positions == "compact":
                    phase = torch.arange(hidden.shape[0])
        out = layer(hidden[None], position_embeddings=decoder.rotary_emb(hidden[None], phase[None]))
        hidden = (out[0] if isinstance(out, tuple) else out)[0]
    return model.get_output_embeddings()(decoder.norm(hidden)), column


def pooled_losses(
    model: Any,
    rows: Sequence[dict[str, Tensor]],
    labels: Sequence[Tensor],
    sites: Sequence[Site],
    positions: str = "keep",
) -> Tensor:
    """The losses of all tokens that are to be learnt, row by row; ``labels`` are as long as the rows, -100: not."""
    losses = []
    for row, wanted in zip(rows, labels, strict=True):
        logits, column = pooled_forward(model, row, sites, positions)
        losses.append(F.cross_entropy(logits[:-1], wanted[column][1:], ignore_index=-100, reduction="none"))
        losses[-1] = losses[-1][wanted[column][1:] != -100]
    return torch.cat(losses)
