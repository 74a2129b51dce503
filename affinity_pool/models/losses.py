"""What a model's loss reads, kept in step with the columns that are left.

The head of each family computes its loss in its own way, of its logits, of ``labels`` and, in some, of the attention
mask. It reads the very tensors it was called with. So it is called with copies of them, and at each site their contents
are exchanged for those of the columns that are left: each label stays with its column, and audio has none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""The label of a column that is not to be learnt, in every loss of transformers."""


class Targets:
    """Of one call with labels. Raises what is wrong with their shapes; :meth:`check` what is wrong with them."""

    def __init__(self, kwargs: dict[str, Any], columns: tuple[int, int]) -> None:
        """``kwargs`` are the call's, ``columns`` the shape ``[B, T]`` of its tokens."""
        self._kept = kwargs.get("logits_to_keep") or columns[1]
        """How many of the last columns have logits."""
        self._given: dict[str, Tensor] = {}
        self._now: dict[str, Tensor] = {}
        for name in ("labels", "shift_labels"):
            if (labels := kwargs.get(name)) is not None:
                self._given[name] = labels
                self._now[name] = _unshifted(name, _widened(name, labels, columns, self._kept))
        if (mask := kwargs.get("attention_mask")) is not None:
            self._given["attention_mask"] = self._now["attention_mask"] = mask
        self.handed: dict[str, Tensor] = {name: given.clone() for name, given in self._given.items()}
        """What the model is called with, by keyword."""
        self._last = None if (shifted := self._given.get("shift_labels")) is None else shifted[:, -1:]
        self._on_padding: tuple[int, int] | None = None

    def wanted(self) -> Tensor:
        """``[B, T]`` bool, the columns that have a label."""
        return torch.stack([now != IGNORED for name, now in self._now.items() if name != "attention_mask"]).any(0)

    def check(self, wanted: Tensor, audio: Tensor, mask: Tensor) -> None:
        """Refuse labels on audio; all three are ``[B, T]`` bool, on the host."""
        if bool((on_audio := wanted & audio).any()):
            row, column = on_audio.nonzero()[0].tolist()
            raise ValueError(
                f"labels[{row}, {column}] is a label on an audio token: audio tokens merge, and none of them can be "
                f"asked for. Set the labels of audio tokens to {IGNORED}: "
                f"labels[input_ids == audio_token_id] = {IGNORED}"
            )
        if bool((on_padding := wanted & ~mask).any()):
            self._on_padding = tuple(on_padding.nonzero()[0].tolist())

    def follow(self, starts: Tensor, filled: Tensor | None) -> None:
        """Columns have merged: ``starts [B, W]`` says where each began, ``filled [B, W]`` which are not padding."""
        if self._on_padding is not None:
            row, column = self._on_padding
            raise ValueError(
                f"labels[{row}, {column}] is a label in padding, of which pooling keeps no more than it must: set the "
                f"labels of padding to {IGNORED}"
            )
        for name, now in self._now.items():
            nothing = 0 if name == "attention_mask" else IGNORED
            now = now.gather(1, starts.to(now.device))
            self._now[name] = now if filled is None else now.masked_fill(~filled.to(now.device), nothing)
            self.handed[name].data = self._as_given(name)

    def restore(self) -> None:
        """Give what was handed in its contents back: outputs, and layers that run again, may hold it."""
        for name, handed in self.handed.items():
            if handed.shape != self._given[name].shape:
                handed.data = self._given[name].clone()

    def _as_given(self, name: str) -> Tensor:
        now = self._now[name]
        if name == "attention_mask":
            return now
        if name == "shift_labels":
            assert self._last is not None
            now = torch.cat([now[:, 1:], self._last], 1)
        return now[:, -self._kept :].contiguous()


def _widened(name: str, labels: Any, columns: tuple[int, int], kept: int) -> Tensor:
    """Labels of all columns, where the call has some for the last ``kept`` alone, as it then has logits."""
    batch, width = columns
    wanted = (batch, min(kept, width))
    if not isinstance(labels, Tensor) or tuple(labels.shape) != wanted:
        shape = list(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        what = "one for each token" if wanted == columns else f"one for each of the last {kept} (logits_to_keep)"
        raise ValueError(f"{name} must have shape {list(wanted)}, {what}, got {shape}")
    if wanted == columns:
        return labels
    wide = labels.new_full(columns, IGNORED)
    # Nothing before it has logits, and so the first of them is never compared with any.
    first = wanted[1] - 1 if name == "labels" else wanted[1]
    wide[:, width - first :] = labels[:, wanted[1] - first :]
    return wide


def _unshifted(name: str, labels: Tensor) -> Tensor:
    """``shift_labels`` say at each column what comes next: as labels, which say what it is."""
    if name == "labels":
        return labels
    return torch.cat([labels.new_full((labels.shape[0], 1), IGNORED), labels[:, :-1]], 1)
