"""A citizen of torch on CUDA: opcheck, inductor, CUDA graphs of inductor's making, gradients, autocast."""

from __future__ import annotations

import pytest
import torch
from op.cases import DTYPES, can_merge, same_bits, spell

import affinity_pool

pytestmark = pytest.mark.gpu

OPS = torch.ops.affinity_pool
TEXT = "AAABBaAACC"
both_ops = pytest.mark.parametrize("op", ["pool", "pool_padded"])


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device="cuda")


def rows(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return spell(TEXT, 16, dtype, noise=0.1).cuda()


def input_of(op: str, text: str = TEXT, dim: int = 64) -> torch.Tensor:
    x = spell(text, dim, torch.bfloat16).cuda()
    return x if op == "pool" else torch.stack([x, x.flip(0), x])


def opcheck(*arguments: object) -> None:
    try:
        torch.library.opcheck(*arguments)
    except ModuleNotFoundError as missing:
        pytest.skip(f"torch.library.opcheck of torch {torch.__version__} needs {missing.name}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_passes_with_all_its_tests(backend: str, dtype: torch.dtype) -> None:
    x, mask = rows(dtype), can_merge(TEXT).cuda()
    opcheck(OPS.pool.default, (x, None, None, 0.8, 3))
    opcheck(OPS.pool.default, (x, ints(0, 4, 4, 10), mask, 0.8, 1))
    opcheck(OPS.pool.default, (x[:0], ints(0), None, 0.8, 3))
    opcheck(OPS.pool_padded.default, (x.view(2, 5, 16), ints(3, 0), mask.view(2, 5), 0.8, 1, True))
    opcheck(OPS.pool_padded.default, (x.view(2, 5, 16), None, None, 0.8, 32))


@both_ops
def test_opcheck_passes_with_gradients(backend: str, op: str) -> None:
    x = rows().requires_grad_()
    if op == "pool":
        opcheck(OPS.pool.default, (x, None, None, 0.8, 3))
    else:
        opcheck(OPS.pool_padded.default, (x.detach().view(2, 5, 16).requires_grad_(), None, None, 0.8, 3))


@both_ops
def test_inductor_keeps_the_op_whole(backend: str, op: str) -> None:
    function = getattr(affinity_pool, op)
    torch.compiler.reset()
    compiled = torch.compile(lambda x: tuple(function(x * 2, threshold=0.9)), fullgraph=True, dynamic=True)
    for text in ("AAABBaAACC", "AABBCCBBA", "ABABABABABABABABA"):
        x = input_of(op, text)
        assert same_bits(compiled(x), function(x * 2, threshold=0.9))


def test_reduce_overhead_replays_it_from_a_graph(backend: str) -> None:
    """Products before and after, so that there is more than the op in the graph."""

    def function(x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values, *rest = affinity_pool.pool_padded(x * 0.5, lengths, threshold=0.9, left_padded=True)
        return values + 1, *rest

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, mode="reduce-overhead")
    texts = ["AAABBaAACC", "ABABABABAB", "AAAAAAAAAA", "ABCABCAABB", "CCCCCABBBB", "AABBAABBCC"]
    with torch.inference_mode():
        for i, text in enumerate(texts):
            x, lengths = input_of("pool_padded", text), ints(10, i, 5)
            torch.compiler.cudagraph_mark_step_begin()
            result = tuple(t.clone() for t in compiled(x, lengths))
            assert same_bits(result, function(x, lengths))


@both_ops
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_those_of_the_cpu(backend: str, op: str, dtype: torch.dtype) -> None:
    function = getattr(affinity_pool, op)
    x = input_of(op).to(dtype)
    weights = torch.randn(function(x, threshold=0.9).values.shape, generator=torch.Generator().manual_seed(0)).to(dtype)

    def gradient(device: str) -> torch.Tensor:
        leaf = x.to(device).detach().requires_grad_()
        function(leaf, threshold=0.9).values.backward(weights.to(device))
        return leaf.grad.cpu()

    assert torch.equal(gradient("cuda"), gradient("cpu"))


@both_ops
def test_autocast_leaves_dtypes_alone(backend: str, op: str) -> None:
    x, function = input_of(op).float(), getattr(affinity_pool, op)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert same_bits(function(x), function(x))
        assert function(x).values.dtype == torch.float32
