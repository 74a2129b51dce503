"""Derivatives of the ops, in both directions and of any order.

Once its groups are known the op is linear. Forward, the tangent of a group is the mean of its rows' tangents; backward,
a row receives its share of its group's gradient. Both are made of torch's own ops, which have derivatives in turn, and
work in float32: 16-bit formats hold no count of 257, or of 65536.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ._ops import ops

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]


class Differentiable(torch.autograd.Function):
    """An op with its derivatives: ``means`` is the op where the groups are known, and so its own tangent."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
        _, _, segment_ids, counts = output
        ctx.save_for_backward(segment_ids, counts)
        ctx.save_for_forward(segment_ids, counts)

    @classmethod
    def jvp(cls, ctx: Any, tangent: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        return cls.means(tangent, *ctx.saved_tensors), None, None, None

    @staticmethod
    def means(rows: Tensor, segment_ids: Tensor, counts: Tensor) -> Tensor:
        """The mean of each group of rows, summed in float32 and rounded once."""
        raise NotImplementedError


def below_autograd(name: str) -> Callable[..., Outputs]:
    """The op of that name as its kernels have it."""

    def forward(*arguments: Any) -> Outputs:
        with torch._C._AutoDispatchBelowAutograd():
            outputs: Outputs = getattr(ops, name).default(*arguments)
            return outputs

    return forward


def no_vmap(packed: str) -> Callable[..., None]:
    padded = packed.replace("pool", "pool_padded")

    def vmap(*_: Any) -> None:
        raise NotImplementedError(
            "affinity_pool ops have no vmap rule: an item's groups are its own. "
            f"Call {padded} on the batch, or {packed} with cu_seqlens."
        )

    return vmap


class Pool(Differentiable):
    """``torch.ops.affinity_pool.pool``."""

    forward: staticmethod[..., Outputs] = staticmethod(below_autograd("pool"))
    vmap: staticmethod[..., None] = staticmethod(no_vmap("pool"))

    @staticmethod
    def backward(ctx: Any, grad_values: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        segment_ids, counts = ctx.saved_tensors
        return share(grad_values, counts).index_select(0, segment_ids), *no_gradients(ctx)

    @staticmethod
    def means(rows: Tensor, segment_ids: Tensor, counts: Tensor) -> Tensor:
        sums = rows.new_zeros(counts.shape[0], rows.shape[1], dtype=torch.float32)
        sums = sums.index_add(0, segment_ids, rows.float())
        return share(sums, counts).to(rows.dtype)


class PoolPadded(Differentiable):
    """``torch.ops.affinity_pool.pool_padded``."""

    forward: staticmethod[..., Outputs] = staticmethod(below_autograd("pool_padded"))
    vmap: staticmethod[..., None] = staticmethod(no_vmap("pool"))

    @staticmethod
    def backward(ctx: Any, grad_values: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        segment_ids, counts = ctx.saved_tensors
        padding, column = columns(segment_ids, grad_values)
        shares = share(grad_values, counts.clamp(min=1)).gather(1, column)
        return shares.masked_fill(padding, 0), *no_gradients(ctx)

    @staticmethod
    def means(rows: Tensor, segment_ids: Tensor, counts: Tensor) -> Tensor:
        padding, column = columns(segment_ids, rows)
        valid = rows.float().masked_fill(padding, 0)
        sums = torch.zeros_like(valid).scatter_add(1, column, valid)
        return share(sums, counts.clamp(min=1)).to(rows.dtype)


class PoolTo(Pool):
    """``torch.ops.affinity_pool.pool_to``."""

    forward: staticmethod[..., Outputs] = staticmethod(below_autograd("pool_to"))
    vmap: staticmethod[..., None] = staticmethod(no_vmap("pool_to"))


class PoolPaddedTo(PoolPadded):
    """``torch.ops.affinity_pool.pool_padded_to``."""

    forward: staticmethod[..., Outputs] = staticmethod(below_autograd("pool_padded_to"))
    vmap: staticmethod[..., None] = staticmethod(no_vmap("pool_to"))


def no_gradients(ctx: Any) -> list[None]:
    """Of every argument but x."""
    return [None] * (len(ctx.needs_input_grad) - 1)


def share(total: Tensor, counts: Tensor) -> Tensor:
    """``total [.., M, D]`` of each group divided among its rows, in the dtype of ``total``."""
    return (total.float() / counts.unsqueeze(-1)).to(total.dtype)


def columns(segment_ids: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows are padding ``[B, T, 1]``, and an index ``[B, T, D]`` of each row's group, 0 in padding."""
    column = segment_ids.clamp(min=0).long().unsqueeze(-1).expand(like.shape)
    return (segment_ids < 0).unsqueeze(-1), column


def register(library: torch.library.Library, name: str, function: type[Differentiable]) -> None:
    """Give the op of that name its derivatives."""

    def reverse(x: Tensor, *arguments: Any) -> Outputs:
        if x.requires_grad and torch.is_grad_enabled():
            return function.apply(x, *arguments)
        return function.forward(x, *arguments)

    def eager(x: Tensor, *arguments: Any) -> Outputs:
        primal, tangent = forward_ad.unpack_dual(x)
        if tangent is None:
            return reverse(x, *arguments)
        values, boundaries, segment_ids, counts = reverse(primal, *arguments)
        dual = forward_ad.make_dual(values, function.means(tangent, segment_ids, counts))
        return dual, boundaries, segment_ids, counts

    untraced = torch._disable_dynamo(eager)

    def autograd(*arguments: Any) -> Outputs:
        # At a graph break torch.compile looks into this function, where it would not see that x is a dual tensor.
        return untraced(*arguments) if torch.compiler.is_dynamo_compiling() else eager(*arguments)

    def transformed(*arguments: Any) -> Outputs:
        try:
            return function.apply(*arguments)
        except RuntimeError as error:
            if "Functionalize" not in str(error):
                raise
            raise NotImplementedError(
                "affinity_pool ops have no rule for torch.func.functionalize. "
                "torch.compile and torch.export make a function functional without it."
            ) from error

    library.impl(name, autograd, "Autograd")
    # torch.func takes an autograd.Function apart level by level, but not one that an Autograd kernel calls.
    library.impl(name, transformed, "FuncTorchDynamicLayerFrontMode")
