"""Derivatives in every direction torch has, against those of a linear map written down by finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functionalize, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.utils.checkpoint import checkpoint

import affinity_pool
from affinity_pool import reference

from .cases import DTYPES, can_merge, spell

TEXT = "AAABBaAACC"
OPS = torch.ops.affinity_pool


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def batch(x: Tensor) -> Tensor:
    return torch.stack([x, x.flip(0)])


Function = Callable[[Tensor], Tensor]
FUNCTIONS: dict[str, Function] = {
    "pool": lambda x: affinity_pool.pool(x, ints(0, 3, 3, 10), mergeable=can_merge(TEXT), threshold=0.9).values,
    "pool_padded": lambda x: affinity_pool.pool_padded(batch(x), ints(7, 10), threshold=0.9, left_padded=True).values,
    "raw pool": lambda x: OPS.pool(x, None, None, 0.9, 3)[0],
    "raw pool_padded": lambda x: OPS.pool_padded(batch(x), ints(0, 8), None, 0.9, 3)[0],
    "pool_to": lambda x: affinity_pool.pool_to(x, 1 / 3, ints(0, 3, 3, 10), mergeable=can_merge(TEXT)).values,
    "pool_padded_to": lambda x: affinity_pool.pool_padded_to(batch(x), [2, 4], ints(7, 10), left_padded=True).values,
    "raw pool_to": lambda x: OPS.pool_to(x, None, None, 1.0, [4])[0],
    "raw pool_padded_to": lambda x: OPS.pool_padded_to(batch(x), None, None, 1.0, None, ints(4, 4))[0],
    "reference": lambda x: reference.pool(x, threshold=0.9).values,
    "reference padded": lambda x: reference.pool_padded(batch(x), ints(7, 10), threshold=0.9).values,
}
OURS = [name for name in FUNCTIONS if "reference" not in name]
X, TANGENT = spell(TEXT, 3), torch.randn(10, 3, generator=torch.Generator().manual_seed(0))


def cubes(f: Function) -> Function:
    return lambda x: f(x).pow(3).sum()


def jacobian(f: Function) -> Tensor:
    """``[outputs, 30]``. Within a group the op is linear, so a step that leaves the groups alone is exact."""
    steps = torch.eye(30).view(30, 10, 3) / 64
    return torch.stack([(f(X + step) - f(X - step)).flatten() * 32 for step in steps], 1)


def second(f: Function) -> Tensor:
    """Hessian ``[30, 30]`` of the sum of the cubes."""
    return jacobian(f).T @ (6 * f(X).flatten()).diag() @ jacobian(f)


def dual(f: Function, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, TANGENT))).tangent


def dual_of_a_graph(f: Function) -> Tensor:
    """Forward over reverse, both by torch.autograd."""
    with forward_ad.dual_level():
        x = forward_ad.make_dual(X.clone().requires_grad_(), TANGENT)
        (gradient,) = torch.autograd.grad(cubes(f)(x), x, create_graph=True)
        return forward_ad.unpack_dual(gradient).tangent


def through_a_checkpoint(f: Function) -> Tensor:
    x = X.clone().requires_grad_()
    return torch.autograd.grad(checkpoint(cubes(f), x, use_reentrant=False), x)[0]


def outside_a_transform(f: Function) -> Tensor:
    x = X.clone().requires_grad_()
    return torch.autograd.grad((grad(cubes(f))(x) * TANGENT).sum(), x)[0]


def first(f: Function) -> Tensor:
    return jacobian(f).T @ (3 * f(X).flatten().square())


# How it is taken, and what it must be, flat.
# fmt: off
DERIVATIVES: dict[str, tuple[Callable[[Function], Tensor], Callable[[Function], Tensor]]] = {
    "jvp": (lambda f: jvp(f, (X,), (TANGENT,))[1], lambda f: jacobian(f) @ TANGENT.flatten()),
    "linearize": (lambda f: linearize(f, X)[1](TANGENT), lambda f: jacobian(f) @ TANGENT.flatten()),
    "dual": (lambda f: dual(f, X), lambda f: jacobian(f) @ TANGENT.flatten()),
    "dual, no_grad": (lambda f: dual(torch.no_grad()(f), X), lambda f: jacobian(f) @ TANGENT.flatten()),
    "dual of a leaf": (lambda f: dual(f, X.clone().requires_grad_()), lambda f: jacobian(f) @ TANGENT.flatten()),
    "dual, compiled": (lambda f: dual(torch.compile(f, backend="eager"), X), lambda f: jacobian(f) @ TANGENT.flatten()),
    "jacfwd": (lambda f: jacfwd(f)(X), jacobian),
    "jacrev": (lambda f: jacrev(f)(X), jacobian),
    "jacrev in chunks": (lambda f: jacrev(f, chunk_size=2)(X), jacobian),
    "vjp": (lambda f: vjp(f, X)[1](f(X).square() * 3)[0], first),
    "grad": (lambda f: grad(cubes(f))(X), first),
    "checkpoint": (through_a_checkpoint, first),
    "hessian": (lambda f: hessian(cubes(f))(X), second),
    "jacrev of jacrev": (lambda f: jacrev(jacrev(cubes(f)))(X), second),
    "jacfwd of jacfwd": (lambda f: jacfwd(jacfwd(cubes(f)))(X), second),
    "jacrev of jacfwd": (lambda f: jacrev(jacfwd(cubes(f)))(X), second),
    "autograd.functional": (lambda f: torch.autograd.functional.hessian(cubes(f), X), second),
    "jvp of grad": (lambda f: jvp(grad(cubes(f)), (X,), (TANGENT,))[1], lambda f: second(f) @ TANGENT.flatten()),
    "dual of a gradient": (dual_of_a_graph, lambda f: second(f) @ TANGENT.flatten()),
    "backward through grad": (outside_a_transform, lambda f: second(f) @ TANGENT.flatten()),
}
# fmt: on


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("taken", DERIVATIVES)
def test_every_derivative_is_that_of_the_linear_map(function, taken):
    f = FUNCTIONS[function]
    if "reference" in function and taken == "linearize":
        pytest.skip("linearize traces, and the reference decides in Python")
    derivative, expected = DERIVATIVES[taken]
    torch._dynamo.reset()
    torch.testing.assert_close(derivative(f).flatten(), expected(f).flatten(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["pool", "pool_padded"])
def test_a_tangent_is_the_mean_summed_in_float32(op, dtype):
    """65536 rows: a sum in 16 bits would stop growing, and a count would be infinite."""
    x = torch.ones(1, 65536, 1, dtype=dtype)

    def pooled(x: Tensor) -> Tensor:
        return affinity_pool.pool(x[0]).values if op == "pool" else affinity_pool.pool_padded(x).values[0, :1]

    values, tangent = jvp(pooled, (x,), (torch.full_like(x, 0.5),))
    assert tangent.dtype == dtype
    assert (values.tolist(), tangent.tolist()) == ([[1.0]], [[0.5]])


@pytest.mark.parametrize("function", FUNCTIONS)
def test_values_under_a_transform_are_bit_for_bit_those_without(function):
    f = FUNCTIONS[function]
    assert torch.equal(jvp(f, (X,), (TANGENT,))[0], f(X))
    assert torch.equal(vjp(f, X)[0], f(X))
    with forward_ad.dual_level():
        assert torch.equal(forward_ad.unpack_dual(f(forward_ad.make_dual(X, TANGENT))).primal, f(X))


def test_tangents_in_padding_go_nowhere_and_boundaries_have_none():
    x = spell("AAB0", 8).unsqueeze(0)
    tangent = torch.ones_like(x)
    tangent[0, 2:] = torch.nan
    values, lengths, segment_ids, counts = jvp(
        lambda x: tuple(affinity_pool.pool_padded(x, ints(2), threshold=0.9)), (x,), (tangent,)
    )[1]
    assert values[0].tolist() == [[1.0] * 8] + [[0.0] * 8] * 3
    assert not any(t.any() for t in (lengths, segment_ids, counts))


@pytest.mark.parametrize("function", OURS)
def test_compiled_transforms_are_the_eager_ones(function):
    f = FUNCTIONS[function]
    whole = "padded" in function  # a graph does not hold a number of groups that it then differentiates
    compiled = torch.compile(lambda x: jvp(grad(cubes(f)), (x,), (TANGENT,))[1], backend="aot_eager", fullgraph=whole)
    torch.testing.assert_close(compiled(X), jvp(grad(cubes(f)), (X,), (TANGENT,))[1])


@pytest.mark.parametrize("function", OURS)
def test_what_is_not_mapped_may_be_pooled_inside_vmap(function):
    f = FUNCTIONS[function]
    assert torch.equal(vmap(lambda w: f(X).sum() * w)(torch.arange(3.0)), f(X).sum() * torch.arange(3.0))


@pytest.mark.parametrize("function", OURS)
@pytest.mark.parametrize("transform", [lambda f: vmap(grad(f)), lambda f: grad(lambda x: vmap(f)(x).sum())])
def test_a_mapped_gradient_says_what_to_call_instead(function, transform):
    with pytest.raises(NotImplementedError, match=r"have no vmap rule: .*Call pool_padded(_to)? on the batch"):
        transform(cubes(FUNCTIONS[function]))(torch.stack([X, X]))


@pytest.mark.parametrize("function", ["pool", "pool_padded", "pool_to", "pool_padded_to"])
@pytest.mark.parametrize("transform", [functionalize, lambda f: functionalize(grad(cubes(f)))])
def test_functionalize_is_refused_in_words(function, transform):
    with pytest.raises(NotImplementedError, match=r"have no rule for torch.func.functionalize\. torch.compile and"):
        transform(FUNCTIONS[function])(X)
