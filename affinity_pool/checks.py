"""What the pooling functions refuse, in words: the argument, what was given, what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.autograd import forward_ad

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_WINDOW = 32
MAX_ENTRIES = 2**31 - 1
INTS = (int, torch.SymInt)  # torch.export shows a size as the latter

Keep = float | int | Sequence[int] | Tensor
"""How many rows are left: a share of each run, or a number of each sequence; see :func:`affinity_pool.pool_to`."""


def check_pool(x: Tensor, cu_seqlens: Tensor | None, mergeable: Tensor | None, threshold: float, window: int) -> None:
    """Raise TypeError or ValueError unless these are arguments that :func:`affinity_pool.pool` takes."""
    check_rows(x, "[N, D]")
    check_data(x)
    check_index("cu_seqlens", cu_seqlens, x)
    if cu_seqlens is not None:
        check_sequences(cu_seqlens.shape[0], x.shape[0])
    check_mergeable(mergeable, x)
    check_rule(threshold, window)


def check_pool_padded(
    x: Tensor, lengths: Tensor | None, mergeable: Tensor | None, threshold: float, window: int
) -> None:
    """Raise TypeError or ValueError unless these are arguments that :func:`affinity_pool.pool_padded` takes."""
    check_rows(x, "[B, T, D]")
    check_index("lengths", lengths, x, size=x.shape[0])
    check_mergeable(mergeable, x)
    check_rule(threshold, window)


def check_pool_to(x: Tensor, keep: Keep, cu_seqlens: Tensor | None, mergeable: Tensor | None) -> None:
    """Raise TypeError or ValueError unless these are arguments that :func:`affinity_pool.pool_to` takes."""
    check_rows(x, "[N, D]")
    if isinstance(keep, (float, Tensor)):  # ints tell the number of groups without data
        check_data(x, instead="pool_padded_to or counts as ints")
    check_index("cu_seqlens", cu_seqlens, x)
    if cu_seqlens is not None:
        check_sequences(cu_seqlens.shape[0], x.shape[0])
    check_mergeable(mergeable, x)
    batch = 1 if cu_seqlens is None else cu_seqlens.shape[0] - 1
    check_keep(keep, x, batch, x.shape[0], mergeable, lengths_known=cu_seqlens is None)


def check_pool_padded_to(x: Tensor, keep: Keep, lengths: Tensor | None, mergeable: Tensor | None) -> None:
    """Raise TypeError or ValueError unless these are arguments that :func:`affinity_pool.pool_padded_to` takes."""
    check_rows(x, "[B, T, D]")
    check_index("lengths", lengths, x, size=x.shape[0])
    check_mergeable(mergeable, x)
    check_keep(keep, x, x.shape[0], x.shape[1], mergeable, lengths_known=lengths is None)


def check_keep(keep: Keep, x: Tensor, batch: int, rows: int, mergeable: Tensor | None, *, lengths_known: bool) -> None:
    """Raise unless ``keep`` is a share, or counts for ``batch`` sequences of at most (or exactly) ``rows`` rows."""
    if isinstance(keep, float):
        check_share(keep)
        return
    if isinstance(keep, Tensor):
        check_index("keep", keep, x, size=batch)
    else:
        if isinstance(keep, bool) or not isinstance(keep, (*INTS, list, tuple)):
            raise TypeError(
                "keep must be a float (a share), an int or ints (rows of each sequence), or an int32 tensor, "
                f"got {_kind(keep)}"
            )
        counts = list(keep) if isinstance(keep, (list, tuple)) else [keep]
        if isinstance(keep, (list, tuple)) and len(counts) != batch:
            raise ValueError(f"keep must have one int for each of the {batch} sequences of x, got {len(counts)}")
        for b, count in enumerate(counts):
            if isinstance(count, bool) or not isinstance(count, INTS):
                raise TypeError(f"keep must hold ints (rows of each sequence), got {_kind(count)} at sequence {b}")
            if isinstance(count, torch.SymInt) or torch.compiler.is_compiling():
                continue  # a symbol of a graph, whose kernel looks at what it turns out to be
            if lengths_known and batch > 0:
                check_promise(count, rows, b)
            elif not 0 <= count <= rows:
                raise ValueError(f"keep must be in 0..{rows} (rows), got {count} at sequence {b}")
    if mergeable is not None:
        raise ValueError("keep must be a float (a share of each run) if mergeable is given, got counts")


def check_share(keep: float, name: str = "keep") -> None:
    """Raise unless ``keep`` is a share of rows, a float in (0, 1]."""
    if isinstance(keep, bool) or not isinstance(keep, (float, torch.SymFloat)):
        raise TypeError(f"{name} must be a float, a share of rows in (0, 1], got {_kind(keep)}")
    if not 0 < keep <= 1:
        raise ValueError(f"{name} must be a share of rows in (0, 1], got {keep}")


def check_promise(count: int, length: int, sequence: int) -> None:
    """Raise unless a sequence of ``length`` rows can be reduced to ``count``."""
    if not min(1, length) <= count <= length:
        allowed = f"in 1..{length}" if length > 0 else "0"
        raise ValueError(f"keep must be {allowed} for the {length} rows of sequence {sequence}, got {count}")


def check_rule(threshold: float, window: int) -> None:
    """Raise unless ``threshold`` is a number and ``window`` an int in 1..32."""
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)):
        raise TypeError(f"threshold must be a float (a cosine similarity), got {_kind(threshold)}")
    if threshold != threshold:  # math.isnan would break a graph in which the threshold is symbolic
        raise ValueError("threshold must be a number, got NaN; use a threshold above 1 to merge nothing")
    if isinstance(threshold, int) and not -(2**63) <= threshold < 2**63:
        raise ValueError(f"threshold must be a cosine similarity, got {_kind(threshold)}")
    if isinstance(window, bool) or not isinstance(window, int):
        raise TypeError(f"window must be an int in 1..{MAX_WINDOW} (tokens), got {_kind(window)}")
    if not 1 <= window <= MAX_WINDOW:
        raise ValueError(f"window must be in 1..{MAX_WINDOW} (tokens), got {window}")


def check_rows(x: Tensor, shape: str, name: str = "x") -> None:
    """Raise unless ``x`` (to its caller, ``name``) is a dense float tensor of the given shape, such as ``[N, D]``."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of shape {shape}, got {_kind(x)}")
    _check_dense(name, x)
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} must be float32, float16 or bfloat16, got {x.dtype}")
    if x.dim() != shape.count(",") + 1:
        raise ValueError(f"{name} must have shape {shape}, got {list(x.shape)}")
    if x.shape[-1] == 0:
        raise ValueError(f"{name} must have at least one feature in its last dimension, got shape {list(x.shape)}")


def check_data(x: Tensor, name: str = "x", instead: str = "pool_padded") -> None:
    """Raise if ``x`` is on the meta device: how many groups there are shows in data."""
    if x.is_meta and not torch.compiler.is_compiling():
        raise ValueError(f"{name} must hold data, got a meta tensor; only {instead} can tell shapes without it")


def check_plain(x: Tensor, name: str, instead: str) -> None:
    """Raise if ``x`` belongs to a transform of torch.func or carries a tangent, which would be lost in silence."""
    if torch.func.debug_unwrap(x) is not x or forward_ad.unpack_dual(x).tangent is not None:
        raise NotImplementedError(f"{name} must not be under torch.func or carry a forward-mode tangent; {instead}")


def check_mergeable(mergeable: Tensor | None, x: Tensor) -> None:
    """Raise unless ``mergeable`` is None or a bool tensor over the rows of ``x``, on its device."""
    if mergeable is None:
        return
    if not isinstance(mergeable, Tensor):
        raise TypeError(f"mergeable must be a bool tensor or None, got {_kind(mergeable)}")
    _check_dense("mergeable", mergeable)
    if mergeable.dtype != torch.bool:
        raise TypeError(f"mergeable must be a bool tensor, got {mergeable.dtype}")
    if mergeable.shape != x.shape[:-1]:
        raise ValueError(
            f"mergeable must have shape {list(x.shape[:-1])}, one flag a row of x, got {list(mergeable.shape)}"
        )
    _check_device("mergeable", mergeable, x)


def check_index(name: str, index: Tensor | None, x: Tensor, size: int | None = None) -> None:
    """Raise unless ``index`` (cu_seqlens or lengths) is None or a 1-D int32 tensor on the device of ``x``."""
    if index is None:
        return
    if not isinstance(index, Tensor):
        raise TypeError(f"{name} must be an int32 tensor or None, got {_kind(index)}")
    _check_dense(name, index)
    if index.dtype != torch.int32:
        raise TypeError(f"{name} must be int32, got {index.dtype}")
    if index.dim() != 1:
        raise ValueError(f"{name} must have one dimension, got shape {list(index.shape)}")
    if size is not None and index.shape[0] != size:
        raise ValueError(f"{name} must have one entry for each of the {size} sequences of x, got {index.shape[0]}")
    _check_device(name, index, x)


def check_sequences(entries: int, rows: int) -> None:
    """Raise unless cu_seqlens of so many entries can be right for so many rows, whatever it holds."""
    if entries == 0:
        raise ValueError("cu_seqlens must have B + 1 entries for B sequences, so at least one, got none")
    if entries > MAX_ENTRIES:
        raise ValueError(f"cu_seqlens must have fewer than 2^31 entries, got {entries}")
    if entries == 1 and rows > 0:
        raise ValueError(f"cu_seqlens must end at the {rows} rows of x, got 0")


def check_cu_seqlens(bounds: Sequence[int], rows: int) -> None:
    """Raise unless ``bounds`` rises from 0 to ``rows`` without a step down."""
    if bounds[0] != 0:
        raise ValueError(f"cu_seqlens must start at 0, got {bounds[0]}")
    for b, (start, end) in enumerate(pairwise(bounds)):
        if end < start:
            raise ValueError(f"cu_seqlens must not decrease, got {start} then {end} at sequence {b}")
    if bounds[-1] != rows:
        raise ValueError(f"cu_seqlens must end at the {rows} rows of x, got {bounds[-1]}")


def check_lengths(lengths: Sequence[int], width: int) -> None:
    """Raise unless every length is in 0..width."""
    for b, n in enumerate(lengths):
        if not 0 <= n <= width:
            raise ValueError(f"lengths must be in 0..{width} (the padded width of x), got {n} at sequence {b}")


def _check_dense(name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {tensor.layout}")
    if tensor.is_nested:
        raise TypeError(f"{name} must be a dense tensor, got a nested one: pool takes its rows side by side")


def _check_device(name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.device != x.device:
        raise ValueError(f"{name} must be on the device of x, {x.device}, got {tensor.device}")


def _kind(value: object) -> str:
    return " ".join(f"{type(value).__name__} {value!r}".split())[:80]
