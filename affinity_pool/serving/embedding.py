"""Prompts pooled outside the engine that serves them: encoder and projector run here, the decoder runs there.

The number of tokens that a threshold leaves shows in the data, and an engine reserves its placeholders before it has
any. One that takes embeddings of any length, as vLLM does, needs no change for it: it is given them pooled already.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from ..models.families import family_of
from ..models.modules import changes_to
from ..models.prefill import check_expanded
from ..models.settings import resolve
from ..models.sites import Site
from ..models.wrappers import unwrapped


@dataclass(frozen=True, eq=False)
class Embedded:
    """One prompt, pooled at the decoder's input. Its tensors own their memory, and no more than they show."""

    audio_embeds: list[Tensor]
    """``[rows, D]`` of each run of audio tokens, in order: the items of vLLM's ``audio_embeds``."""
    prompt_embeds: Tensor
    """``[tokens, D]``, text and audio, without padding: vLLM's ``prompt_embeds``."""
    audio_before: list[int]
    """Audio tokens of each run before pooling."""

    @property
    def audio_after(self) -> list[int]:
        """Audio tokens that are left of each run."""
        return [len(rows) for rows in self.audio_embeds]

    @property
    def tokens_before(self) -> int:
        """Tokens of the prompt before pooling, text and audio; padding never counts."""
        return self.tokens_after - sum(self.audio_after) + sum(self.audio_before)

    @property
    def tokens_after(self) -> int:
        """Tokens that are left of the prompt."""
        return len(self.prompt_embeds)


@torch.no_grad()
def embed(
    model: nn.Module, inputs: Mapping[str, Any], sites: str | os.PathLike[str] | Iterable[Site]
) -> list[Embedded]:
    """Embed prompts and pool their audio tokens at the input site of Dual Affinity Pooling (arXiv 2604.06871, section
    4), for an engine that takes embeddings: ``{"prompt_embeds": it.prompt_embeds}``, or the text with
    ``{"multi_modal_data": {"audio": {"audio_embeds": it.audio_embeds}}}``.

    Args:
        model: a Hugging Face speech language model, as :func:`affinity_pool.patch` takes it, but not patched. No
            decoder layer runs.
        inputs: what its processor returned, for one prompt or a batch padded on either side: ``input_ids [B, T]``,
            ``attention_mask [B, T]`` if some of it is padding, the features if there is audio, and whatever else the
            model's forward takes.
        sites: as ``patch`` takes them, but exactly one, at layer 0: layers are the engine's.

    Returns:
        :class:`Embedded` for each of the ``B`` prompts, on the device and in the dtype of the embeddings, without
        gradients. A prompt without audio is passed through.

    Raises:
        TypeError, ValueError, FileNotFoundError: an argument makes no sense; the message names it.
        NotImplementedError: this model, or what it is wrapped in, cannot be pooled, or not this way; the message says
            why.
        RuntimeError: the model is patched, or its decoder was not reached.

    An engine numbers the tokens that it is given, so ``model(inputs_embeds=it.prompt_embeds[None])`` and its
    ``generate()`` do what a model does that is patched with ``positions="compact"``, whatever a file of sites says of
    positions. Granite multiplies embeddings behind the place where they are pooled here, which may round otherwise.
    Multimodal RoPE (Qwen2.5-Omni) gives audio the positions of text, so it holds there too, but not beside images or
    videos: ``prompt_embeds`` do not tell where their grids are.

    Audio tokens without text between them are one run, as for the patch: clips side by side are pooled as one, and
    where the engine expands placeholders they have one. Calls from several threads run one after the other.

    Example:
        >>> import numpy as np
        >>> from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration
        >>> from affinity_pool import Site
        >>> from affinity_pool.serving import embed
        >>> folder = "examples/tiny-lslm/checkpoint"
        >>> model = Qwen2AudioForConditionalGeneration.from_pretrained(folder)
        >>> processor = AutoProcessor.from_pretrained(folder)
        >>> text = "<|audio_bos|><|AUDIO|><|audio_eos|> transcribe"
        >>> second = np.zeros(16000, dtype=np.float32)
        >>> inputs = processor(text=text, audio=second, sampling_rate=16000, return_tensors="pt")
        >>> [prompt] = embed(model, inputs, [Site(0, keep=0.5)])
        >>> prompt.audio_before, prompt.audio_after
        ([25], [13])
    """
    model = unwrapped(model)
    family = family_of(model)
    token, decoder = family.audio_token_id(model.config), family.decoder(model)
    if any(changes_to(module) is not None for module in (model, decoder, *decoder.layers)):
        raise RuntimeError(
            "this model is patched, and what embed returns would be pooled twice: call remove() on the handle first, "
            "leave its with block, or call affinity_pool.unpatch(model)"
        )
    site = _input_site(sites, len(decoder.layers))
    ids, mask = _ids_and_mask(inputs)
    audio = ids == token
    if inputs.get(family.features) is None and bool((audio & mask).any()):
        raise ValueError(f"inputs has audio placeholders in input_ids (id {token}) but no {family.features}: pass both")
    embeds = _decoder_input(model, decoder, dict(inputs))
    check_expanded(ids.shape[1], embeds.shape[1])
    audio, mask = audio.to(embeds.device), mask.to(embeds.device)
    return [_pooled(rows[own], of[own], site) for rows, of, own in zip(embeds, audio, mask, strict=True)]


def _input_site(sites: Any, depth: int) -> Site:
    pooling = resolve(sites, depth)
    found = pooling.sites
    if pooling.attention == "proportional":
        raise ValueError(
            f"{sites} asks for attention='proportional', and what embed returns is attended to in an engine that knows "
            "nothing of it: write 'plain', or pass a list of Site"
        )
    if [site.layer for site in found] != [0]:
        raise ValueError(
            f"sites must be exactly one Site, at layer 0 (the input site), got {list(found)}: deeper layers run in the "
            "engine, where embed cannot pool"
        )
    return found[0]


def _ids_and_mask(inputs: Any) -> tuple[Tensor, Tensor]:
    """``[B, T]`` each: the ids, and in bool which of them are not padding."""
    if not isinstance(inputs, Mapping):
        raise TypeError(f"inputs must be a mapping, what the processor returned, got {type(inputs).__name__}")
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        raise ValueError(
            f"inputs must hold input_ids, a [batch, tokens] tensor (return_tensors='pt'), got {_kind(ids)}"
        )
    if mask is None:
        return ids, torch.ones_like(ids, dtype=torch.bool)
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        raise ValueError(f"attention_mask must be a tensor of shape {list(ids.shape)}, as input_ids, got {_kind(mask)}")
    return ids, mask.to(ids.device).bool()


def _kind(value: Any) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


class _Reached(BaseException):
    """Thrown from before the decoder to whoever called the model. No Exception: nobody on the way is to catch it."""

    def __init__(self, embeds: Tensor) -> None:
        self.embeds = embeds


_alone = threading.RLock()  # a stance of torch.compiler is that of all threads


def _decoder_input(model: nn.Module, decoder: Any, inputs: dict[str, Any]) -> Tensor:
    """``[B, T, D]``, the embeddings that the decoder would begin with."""
    thread = threading.get_ident()  # others may run the model meanwhile, and are let through

    def at_decoder(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if threading.get_ident() == thread and kwargs.get("inputs_embeds") is not None:
            raise _Reached(kwargs["inputs_embeds"])  # not at its first layer: some multiply them before

    def at_first_layer(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if threading.get_ident() == thread:
            raise _Reached(args[0])  # of a decoder that is given ids and merges the audio itself

    # Given positions are not computed: Qwen2.5-Omni would note them for the caller's next embeddings.
    width = inputs["input_ids"].shape[1]
    inputs.setdefault("position_ids", torch.arange(width, device=inputs["input_ids"].device)[None])
    with _alone, torch.compiler.set_stance("force_eager"):  # hooks would have compiled code compiled anew
        hooks = [
            module.register_forward_pre_hook(hook, with_kwargs=True)
            for module, hook in ((decoder, at_decoder), (decoder.layers[0], at_first_layer))
        ]
        try:
            model(**inputs)
        except _Reached as reached:
            return reached.embeds
        finally:
            for hook in hooks:
                hook.remove()
    raise RuntimeError(
        f"{type(model).__name__} returned without having called its decoder: family.decoder in "
        "affinity_pool.models.FAMILIES does not name the one that it runs"
    )


def _pooled(rows: Tensor, audio: Tensor, site: Site) -> Embedded:
    """One prompt: ``rows [T, D]``, of which ``audio [T]`` says which may be pooled."""
    is_audio = audio.tolist()
    if not any(is_audio):
        return Embedded([], rows, [])
    values, lengths, segment_ids, _ = (part[0] for part in site.reduce(rows[None], None, audio[None]))
    tokens = zip(is_audio, segment_ids.tolist(), strict=True)
    runs = [[column for _, column in run] for of_audio, run in groupby(tokens, lambda token: token[0]) if of_audio]
    audio_embeds = [values[sorted({*run} - {-1})] for run in runs]
    return Embedded(audio_embeds, values[len(rows) - int(lengths) :].clone(), list(map(len, runs)))
