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
    """Of one call with labels. Raises what is wrong with their shapes; :meth:`check` what is wrong with them.

    Once columns have merged, the label of a row's first token is left out: nothing comes before it. Where a batch is
    padded on the left transformers lets padding predict it, and how much of that is left is a matter of other rows.
    """

    def __init__(self, kwargs: dict[str, Any], columns: tuple[int, int]) -> None:
        """``kwargs`` are the call's, ``columns`` the shape ``[B, T]`` of its tokens."""
        self.ignored: int = kwargs.get("ignore_index", IGNORED)
        self._kept = kwargs.get("logits_to_keep") or columns[1]
        """How many of the last columns have logits."""
        self._given: dict[str, Tensor] = {}
        self._now: dict[str, Tensor] = {}
        for name in ("labels", "shift_labels"):
            if (labels := kwargs.get(name)) is not None:
                self._given[name] = labels
                wide = _widened(name, labels, columns, self._kept, self.ignored)
                self._now[name] = wide if name == "labels" else _as_labels(wide, self.ignored)
        self._changed = False
        if (mask := kwargs.get("attention_mask")) is not None:
            self._given["attention_mask"] = self._now["attention_mask"] = mask
        self.handed: dict[str, Tensor] = {name: given.clone() for name, given in self._given.items()}
        """What the model is called with, by keyword."""
        self._on_padding: tuple[int, int] | None = None

    def wanted(self) -> Tensor:
        """``[B, T]`` bool, the columns that have a label."""
        labels = [now for name, now in self._now.items() if name != "attention_mask"]
        return torch.stack([now != self.ignored for now in labels]).any(0)

    def check(self, wanted: Tensor, audio: Tensor, mask: Tensor) -> None:
        """Refuse labels on audio; all three are ``[B, T]`` bool, on the host."""
        if bool((on_audio := wanted & audio).any()):
            row, column = on_audio.nonzero()[0].tolist()
            raise ValueError(
                f"labels[{row}, {column}] is a label on an audio token: audio tokens merge, and none of them can be "
                f"asked for. Set the labels of audio tokens to {self.ignored}: "
                f"labels[input_ids == audio_token_id] = {self.ignored}"
            )
        if bool((on_padding := wanted & ~mask).any()):
            self._on_padding = tuple(on_padding.nonzero()[0].tolist())

    def follow(self, starts: Tensor, filled: Tensor | None) -> None:
        """Columns have merged: ``starts [B, W]`` says where each began, ``filled [B, W]`` which are not padding."""
        if self._on_padding is not None:
            row, column = self._on_padding
            raise ValueError(
                f"labels[{row}, {column}] is a label in padding, of which pooling keeps no more than it must: set the "
                f"labels of padding to {self.ignored}"
            )
        if not self._changed and (mask := self._given.get("attention_mask")) is not None:
            self._leave_out_first_tokens(mask.bool())
        self._changed = True
        for name, now in self._now.items():
            nothing = 0 if name == "attention_mask" else self.ignored
            now = now.gather(1, starts.to(now.device))
            self._now[name] = now if filled is None else now.masked_fill(~filled.to(now.device), nothing)
            self.handed[name].data = self._as_given(name)

    def restore(self) -> None:
        """Give what was handed in its contents back: outputs, and layers that run again, may hold it."""
        if self._changed:
            for name, handed in self.handed.items():
                handed.data = self._given[name].clone()

    def _leave_out_first_tokens(self, mask: Tensor) -> None:
        after_padding = torch.zeros_like(mask)
        after_padding[:, 1:] = mask[:, 1:] & ~mask[:, :-1]
        for name in self._now.keys() - {"attention_mask"}:
            now = self._now[name]
            self._now[name] = now.masked_fill(after_padding.to(now.device), self.ignored)

    def _as_given(self, name: str) -> Tensor:
        now = self._now[name]
        if name == "attention_mask":
            return now
        if name == "shift_labels":
            now = torch.cat([now[:, 1:], self._given[name][:, -1:]], 1)
        return now[:, -self._kept :].contiguous()


def _widened(name: str, labels: Any, columns: tuple[int, int], kept: int, ignored: int) -> Tensor:
    """Labels of all columns, where the call has some for the last ``kept`` alone, as it then has logits."""
    batch, width = columns
    wanted = (batch, min(kept, width))
    if not isinstance(labels, Tensor) or tuple(labels.shape) != wanted:
        shape = list(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        what = "one for each token" if wanted == columns else f"one for each of the last {kept} (logits_to_keep)"
        raise ValueError(f"{name} must have shape {list(wanted)}, {what}, got {shape}")
    if wanted == columns:
        return labels
    wide = labels.new_full(columns, ignored)
    # Nothing before it has logits, and so the first of them is never compared with any.
    first = wanted[1] - 1 if name == "labels" else wanted[1]
    wide[:, width - first :] = labels[:, wanted[1] - first :]
    return wide


def _as_labels(shifted: Tensor, ignored: int) -> Tensor:
    """``shift_labels`` say at each column what comes next: as labels, which say what it is."""
    return torch.cat([shifted.new_full((shifted.shape[0], 1), ignored), shifted[:, :-1]], 1)
