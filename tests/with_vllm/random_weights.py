"""Random weights under which an answer depends on what was heard."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


@torch.no_grad()
def scatter(model: Any, seed: int = 0, gain: float = 2.0, head: float = 3.0) -> Any:
    """Make every layer's output about ``gain`` times as large as its input, and logits of the size of ``head``.

    The usual initialization is so small that all rows of all clips are alike and one token is answered again and again.
    """
    generator = torch.Generator().manual_seed(seed)
    tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.dim() < 2:
            weight.add_(noise, alpha=0.1)
        elif id(weight) in tables:  # there is nothing to add up
            weight.copy_(noise)
        else:
            scale = head if "lm_head" in name else gain
            weight.copy_(noise * scale * weight[0].numel() ** -0.5)
    return model.eval()


def save(model: Any, processor: Any, folder: Path, names: Mapping[str, str] | None = None) -> None:
    """A checkpoint as transformers writes it, in float32, its weights under the names that published ones have.

    ``names`` are patterns of what transformers calls them, and what vLLM does.
    """
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    file = folder / "model.safetensors"
    weights = {}
    for name, weight in load_file(file).items():
        for pattern, replacement in {r"(\.model)+\.": ".model.", **(names or {})}.items():
            name = re.sub(pattern, replacement, name)
        weights[name] = weight
    save_file(weights, file, metadata={"format": "pt"})
