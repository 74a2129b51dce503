"""``affinity_pool.patch``: pool the audio tokens of a speech language model while it runs, and the handle of that."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from .calls import Calls
from .families import family_of
from .forward import install
from .memory import check_memory
from .modules import Changes, changes_to
from .refusals import check_decoder
from .running import Patched, PooledCall, current
from .settings import (
    Attention,
    Logits,
    Pooling,
    Positions,
    check_attention,
    check_logits,
    check_positions,
    resolve,
    save,
)
from .sites import Site
from .stats import PrefillStats
from .wrappers import unwrapped


def patch(
    model: torch.nn.Module,
    sites: str | os.PathLike[str] | Iterable[Site] = "aggressive",
    *,
    positions: Positions | None = None,
    attention: Attention | None = None,
    logits: Logits = "pooled",
) -> Handle:
    """Pool the audio tokens of ``model`` at each of ``sites``, in ``model(...)`` and ``model.generate(...)``.

    Args:
        model: a Hugging Face speech language model of a family in :data:`affinity_pool.models.FAMILIES`, also inside
            peft adapters, DistributedDataParallel, torch.compile or averaged weights.
        sites: a preset of the paper (``"aggressive"``, ``"conservative"``; its thresholds are for Qwen2-Audio, its deep
            layer, 29 of 32, scales with the depth), the shares that its thresholds leave (``"aggressive-counted"``), a
            list of :class:`affinity_pool.Site`, a JSON file, or a checkpoint folder that holds ``affinity_pool.json``;
            ``"memory"`` is the preset of encoder-decoder models, made for Whisper: threshold 0.96, window 1,
            proportional attention.
            At a site with a threshold the host waits for the device once; at one that keeps a share it knows beforehand
            how many tokens are left, and waits for nothing.
        positions: the rotary phase of a merged token: that of its first token (``"keep"``), or renumbered from the site
            on (``"compact"``). None: what the JSON file says, else ``"keep"``.
        attention: how much a merged token weighs where it is attended to: as any other (``"plain"``, the paper's), or
            as the tokens it stands for together (``"proportional"``: the log of their number is added to its scores, in
            every layer from its site on, for as long as it is cached). None: what the JSON file says, else ``"plain"``.
        logits: of a prefill, which columns they have: those that are left (``"pooled"``), or the caller's
            (``"expanded"``: each has the logits of the column it went to), for losses and metrics outside of the model.

    Returns:
        :class:`affinity_pool.models.Handle`: a context manager whose end, like its ``remove()``, restores the model
        exactly; ``stats`` tells what the last prefill did.

    In an encoder-decoder model (Whisper) the one site is ``Site("memory", ...)``, the encoder's output, of which the
    decoder's cross-attention then holds fewer keys and values; what is asked of the encoder itself, ``encoder_outputs``
    too, stays as it is, and so does ``cross_attentions``: a merged token's weight is spread over what merged.

    In the others ``output_hidden_states`` has a different width from each site on, and so have the logits of a prefill,
    unless they are expanded: their last column is the last token's. Batches must be padded on the left, as ``generate``
    needs them anyway.

    To train, call the model with ``labels`` (-100 on audio and padding): the loss is the model's own, over the columns
    that are left, and gradients are those of the means. Batches may then be padded on the right, as they may without
    labels in training mode, and where logits are expanded. See docs/training.md.

    Calls may come from several threads. Embeddings made beforehand are pooled where the caller says which are audio:
    ``model.generate(inputs_embeds=..., audio_positions=mask)``, with a ``[B, T]`` bool mask. Copies and pickles of a
    patched model come out unpatched.

    Raises:
        TypeError, ValueError, FileNotFoundError: an argument makes no sense; the message names it.
        NotImplementedError: this model, or what it is wrapped in, cannot be pooled; the message says why.
        RuntimeError: the model, or one that shares its decoder, is patched already.

    Example:
        >>> from transformers import Qwen2AudioForConditionalGeneration
        >>> model = Qwen2AudioForConditionalGeneration.from_pretrained("examples/tiny-lslm/checkpoint")
        >>> from affinity_pool import Site, patch
        >>> with patch(model, "aggressive") as handle:
        ...     [site.layer for site in handle.sites]  # the paper's 0 and 29 of 32, in a decoder of 8 layers
        [0, 7]
        >>> handle = patch(model, [Site(0, keep=0.5)])  # until handle.remove()
        >>> handle.remove()
    """
    model = unwrapped(model)
    family = family_of(model)
    decoder = family.decoder(model)
    if family.attends is not None:
        check_memory(model, decoder, family.attends)
    if any(changes_to(module) is not None for module in (model, decoder, *decoder.layers)):
        raise RuntimeError(
            "this model is patched already, or shares its decoder with one that is: call remove() on the handle first, "
            "leave its with block, or call affinity_pool.unpatch(model)"
        )
    if family.attends is None:
        check_decoder(decoder)
    asked = resolve(sites, len(decoder.layers) if family.attends is None else None)
    patched = Patched(
        model,
        decoder,
        family.features,
        family.audio_token_id,
        family.attends,
        asked.sites,
        check_positions(positions if positions is not None else asked.positions or "keep"),
        check_attention(attention if attention is not None else asked.attention or "plain"),
        check_logits(logits),
    )
    return Handle(family.calls(patched))


def unpatch(model: torch.nn.Module) -> None:
    """Take the patch off a model whose handle is out of reach; one without a patch is left as it is.

    Args:
        model: what was patched, or a model that shares its decoder, or whatever is around one of them.

    Example:
        >>> from transformers import Qwen2AudioForConditionalGeneration
        >>> model = Qwen2AudioForConditionalGeneration.from_pretrained("examples/tiny-lslm/checkpoint")
        >>> from affinity_pool import patch, unpatch
        >>> _ = patch(model, "conservative")
        >>> unpatch(model)
    """
    model = unwrapped(model)
    for module in model.modules():
        if (changes := changes_to(module)) is not None:
            changes.undo()


class Handle:
    """A patched model. Use as a context manager, or call :meth:`remove`."""

    def __init__(self, calls: Calls) -> None:
        self._calls, self._patched = calls, calls.patched
        self.model: Any = calls.patched.model
        """What was patched, without what is wrapped around it."""
        self.sites: tuple[Site, ...] = calls.patched.sites
        """In the order of their layers; a preset's as they are in this model."""
        self.positions: Positions = calls.patched.positions
        """``"keep"`` or ``"compact"``."""
        self.attention: Attention = calls.patched.attention
        """``"plain"`` or ``"proportional"``."""
        self._changes = Changes()
        try:
            install(calls, self._changes)
        except BaseException:
            self.remove()
            raise

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``affinity_pool.json`` into a checkpoint's folder, so that ``patch(model, folder)`` pools like this.

        Raises:
            ValueError: a site has a reduction of its own.

        Example:
            >>> from transformers import Qwen2AudioForConditionalGeneration
            >>> model = Qwen2AudioForConditionalGeneration.from_pretrained("examples/tiny-lslm/checkpoint")
            >>> import tempfile
            >>> from affinity_pool import Site, patch
            >>> with patch(model, [Site(0, keep=0.5)]) as handle:
            ...     handle.save(tempfile.mkdtemp()).name
            'affinity_pool.json'
        """
        return save(Pooling(self.sites, self.positions, self.attention), folder)

    def remove(self) -> None:
        """Take the patch off: the model is what it was. KV caches it pooled wait for a patch of the same layers."""
        self._changes.undo()

    def __reduce__(self) -> Any:
        raise TypeError(
            "a handle belongs to the model it patched and cannot be copied or pickled: copy the model, which comes out "
            "unpatched, and patch the copy"
        )

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    @property
    def running(self) -> bool:
        """Whether a forward that pools, or continues a pooled cache, is under way in this thread."""
        return isinstance(current(self._patched), PooledCall)

    @property
    def stats(self) -> PrefillStats | None:
        """The last prefill with audio to end, in any thread; None before the first. Reading waits for the device."""
        if not self._patched.records:
            return None
        return self._calls.stats(self._patched.records)
