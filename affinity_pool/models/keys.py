"""The keys that a pooled prefill leaves behind: from each site on there are fewer than the caller has tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class SiteState:
    """The keys of the layers from a site on, as its prefill left them."""

    removed: int
    """Columns the caller has more than these layers."""
    valid: Tensor | None
    """``[B, columns]`` bool, False in padding; later columns are all valid. None where nothing is padding."""
    shift: Tensor | None
    """``[B, 1]`` how far the caller's positions run ahead of these layers'; None where they are the same."""
    log_sizes: Tensor | None
    """``[B, columns]`` what is added to the scores of the prefill's columns, to those of later ones nothing; None where
    nothing is (attention="plain")."""

    def valid_keys(self, keys: int, own_mask: Tensor | None) -> Tensor | None:
        """Padding of all ``keys`` columns, once a call whose own columns are ``own_mask`` (None: all valid) is in."""
        if own_mask is not None:
            past = keys - own_mask.shape[1]
            before = own_mask.new_ones(own_mask.shape[0], past) if self.valid is None else self._grown(past)
            self.valid = torch.cat([before, own_mask.to(before.device)], 1)
        return None if self.valid is None else self._grown(keys)

    def weights(self, keys: int) -> Tensor | None:
        """What is added to the scores of all ``keys`` columns; None: nothing."""
        return None if self.log_sizes is None else F.pad(self.log_sizes, (0, keys - self.log_sizes.shape[1]))

    def _grown(self, keys: int) -> Tensor:
        assert self.valid is not None
        return F.pad(self.valid, (0, keys - self.valid.shape[1]), value=True)

    def select(self, rows: Tensor) -> None:
        """Follow the batch to these rows, as the keys do."""
        self.valid, self.shift = selected(self.valid, rows), selected(self.shift, rows)
        self.log_sizes = selected(self.log_sizes, rows)


@overload
def selected(x: Tensor, rows: Tensor) -> Tensor: ...
@overload
def selected(x: None, rows: Tensor) -> None: ...
def selected(x: Tensor | None, rows: Tensor) -> Tensor | None:
    """These rows of what a cache knows beside its keys; None of nothing."""
    return None if x is None else x[rows.to(x.device)]
