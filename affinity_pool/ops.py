"""The torch custom ops ``torch.ops.affinity_pool``: ``pool`` and ``pool_padded``, ``pool_to`` and ``pool_padded_to``.

The schema is written once, here. The kernels in ``csrc`` add implementations for their dispatch keys; on a device with
no kernel the ops run the reference. Fake kernels make the ops opaque to torch.compile and torch.export, derivatives.py
says how tangents and gradients pass. There is no autocast rule on purpose: the ops return the dtype they are given.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import derivatives, reference
from ._ops import add_op_namespace_prefix, ops
from .checks import Keep, check_share
from .results import Closed, Pooled, PooledPadded

_here = str(Path(__file__).parent)
_namespace: Any = ops  # as the dispatcher does, it outlives the module
if hasattr(_namespace, "loaded_from"):
    raise ImportError(
        f"affinity_pool from {_here} cannot be loaded: this process has already loaded it from "
        f"{_namespace.loaded_from}, and torch takes an op once; "
        "restart the process (in a notebook, the kernel), with one of them on sys.path"
    )

library: torch.library.Library = torch.library.Library(ops.name, "DEF")
_namespace.loaded_from, _namespace.library = _here, library

for _schema in (
    "pool(Tensor x, Tensor? cu_seqlens, Tensor? mergeable, float threshold, int window)"
    " -> (Tensor values, Tensor cu_seqlens_out, Tensor segment_ids, Tensor counts)",
    "pool_padded(Tensor x, Tensor? lengths, Tensor? mergeable, float threshold, int window, bool left_padded=False)"
    " -> (Tensor values, Tensor lengths_out, Tensor segment_ids, Tensor counts)",
    # Rows of each sequence, or one number for all, as ints or as a tensor; without them, a share of each run.
    "pool_to(Tensor x, Tensor? cu_seqlens, Tensor? mergeable, float share, SymInt[]? rows=None,"
    " Tensor? rows_tensor=None)"
    " -> (Tensor values, Tensor cu_seqlens_out, Tensor segment_ids, Tensor counts)",
    "pool_padded_to(Tensor x, Tensor? lengths, Tensor? mergeable, float share, SymInt[]? rows=None,"
    " Tensor? rows_tensor=None, bool left_padded=False)"
    " -> (Tensor values, Tensor lengths_out, Tensor segment_ids, Tensor counts)",
):
    library.define(_schema, tags=torch.Tag.pt2_compliant_tag)

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]


def _outputs(result: Pooled | PooledPadded) -> Outputs:
    return result[0], result[1], result[2], result[3]  # the dispatcher wants a plain tuple


def _pool_reference(
    x: Tensor, cu_seqlens: Tensor | None, mergeable: Tensor | None, threshold: float, window: int
) -> Outputs:
    return _outputs(reference.pool(x, cu_seqlens, mergeable=mergeable, threshold=threshold, window=window))


def _pool_padded_reference(
    x: Tensor,
    lengths: Tensor | None,
    mergeable: Tensor | None,
    threshold: float,
    window: int,
    left_padded: bool = False,
) -> Outputs:
    return _outputs(
        reference.pool_padded(
            x, lengths, mergeable=mergeable, threshold=threshold, window=window, left_padded=left_padded
        )
    )


def _keep(
    batch: int, mergeable: Tensor | None, share: float, rows: list[int] | None, rows_tensor: Tensor | None
) -> Keep:
    """The one of three that is given, for so many sequences; refused as csrc/checks.h refuses it."""
    check_share(share, "share")
    if rows is not None and rows_tensor is not None:
        raise ValueError("rows and rows_tensor must not both be given")
    if mergeable is not None and (rows is not None or rows_tensor is not None):
        raise ValueError("mergeable must be None if rows are given, not a share")
    if rows_tensor is not None:
        return rows_tensor
    if rows is None:
        return share
    if len(rows) not in (1, batch):
        raise ValueError(f"rows must be one int, or one for each of the {batch} sequences of x, got {len(rows)}")
    return rows[0] if len(rows) == 1 else rows


def _sequences(cu_seqlens: Tensor | None) -> int:
    return 1 if cu_seqlens is None else cu_seqlens.shape[0] - 1


def _pool_to_reference(
    x: Tensor,
    cu_seqlens: Tensor | None,
    mergeable: Tensor | None,
    share: float,
    rows: list[int] | None = None,
    rows_tensor: Tensor | None = None,
) -> Outputs:
    keep = _keep(_sequences(cu_seqlens), mergeable, share, rows, rows_tensor)
    return _outputs(reference.pool_to(x, keep, cu_seqlens, mergeable=mergeable))


def _pool_padded_to_reference(
    x: Tensor,
    lengths: Tensor | None,
    mergeable: Tensor | None,
    share: float,
    rows: list[int] | None = None,
    rows_tensor: Tensor | None = None,
    left_padded: bool = False,
) -> Outputs:
    keep = _keep(x.shape[0], mergeable, share, rows, rows_tensor)
    return _outputs(reference.pool_padded_to(x, keep, lengths, mergeable=mergeable, left_padded=left_padded))


REFERENCE: dict[str, Callable[..., Outputs]] = {
    "pool": _pool_reference,
    "pool_padded": _pool_padded_reference,
    "pool_to": _pool_to_reference,
    "pool_padded_to": _pool_padded_to_reference,
}

# CompositeExplicitAutograd is what the dispatcher falls back to on a device whose own key has no kernel.
for _name, _implementation in REFERENCE.items():
    library.impl(_name, _implementation, "CompositeExplicitAutograd")


@torch.library.register_fake(add_op_namespace_prefix("pool"), lib=library)
def _pool_fake(
    x: Tensor, cu_seqlens: Tensor | None, mergeable: Tensor | None, threshold: float, window: int
) -> Outputs:
    return _packed_fake(x, cu_seqlens, torch.library.get_ctx().new_dynamic_size())


@torch.library.register_fake(add_op_namespace_prefix("pool_to"), lib=library)
def _pool_to_fake(
    x: Tensor,
    cu_seqlens: Tensor | None,
    mergeable: Tensor | None,
    share: float,
    rows: list[int] | None = None,
    rows_tensor: Tensor | None = None,
) -> Outputs:
    batch = _sequences(cu_seqlens)
    _keep(batch, mergeable, share, rows, rows_tensor)
    if rows is None:
        return _packed_fake(x, cu_seqlens, torch.library.get_ctx().new_dynamic_size())
    return _packed_fake(x, cu_seqlens, rows[0] * batch if len(rows) == 1 else sum(rows))


def _packed_fake(x: Tensor, cu_seqlens: Tensor | None, groups: int | torch.SymInt) -> Outputs:
    return (
        x.new_empty(groups, x.shape[1]),
        x.new_empty(2 if cu_seqlens is None else cu_seqlens.shape[0], dtype=torch.int32),
        x.new_empty(x.shape[0], dtype=torch.int32),
        x.new_empty(groups, dtype=torch.int32),
    )


@torch.library.register_fake(add_op_namespace_prefix("pool_padded"), lib=library)
def _pool_padded_fake(
    x: Tensor,
    lengths: Tensor | None,
    mergeable: Tensor | None,
    threshold: float,
    window: int,
    left_padded: bool = False,
) -> Outputs:
    return _padded_fake(x)


@torch.library.register_fake(add_op_namespace_prefix("pool_padded_to"), lib=library)
def _pool_padded_to_fake(
    x: Tensor,
    lengths: Tensor | None,
    mergeable: Tensor | None,
    share: float,
    rows: list[int] | None = None,
    rows_tensor: Tensor | None = None,
    left_padded: bool = False,
) -> Outputs:
    _keep(x.shape[0], mergeable, share, rows, rows_tensor)
    return _padded_fake(x)


def _padded_fake(x: Tensor) -> Outputs:
    batch, width, _ = x.shape
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        x.new_empty(batch, dtype=torch.int32),
        x.new_empty(batch, width, dtype=torch.int32),
        x.new_empty(batch, width, dtype=torch.int32),
    )


derivatives.register(library, "pool", derivatives.Pool)
derivatives.register(library, "pool_padded", derivatives.PoolPadded)
derivatives.register(library, "pool_to", derivatives.PoolTo)
derivatives.register(library, "pool_padded_to", derivatives.PoolPaddedTo)

for _result in (Closed, Pooled, PooledPadded):  # so that torch.export.save and torch.load know them
    torch.utils._pytree._register_namedtuple(_result, serialized_type_name=f"{ops.name}.{_result.__name__}")
torch.serialization.add_safe_globals([Closed, Pooled, PooledPadded])
