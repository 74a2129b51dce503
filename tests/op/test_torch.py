"""A citizen of torch: opcheck, compile without recompiling, export, gradients of two orders, autocast, vmap."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import affinity_pool

from .cases import DTYPES, can_merge, same_bits, spell

OPS = torch.ops.affinity_pool
every_op = pytest.mark.parametrize("op", ["pool", "pool_padded", "pool_to", "pool_padded_to"])
TEXT = "AAABBaAACC"


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def batch(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x, x.flip(0), x * 2])


def rows_for(op: str, x: torch.Tensor) -> torch.Tensor:
    return batch(x) if "padded" in op else x


def called(op: str, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """With what the op cannot do without."""
    return tuple(getattr(affinity_pool, op)(x, *([0.5] if op.endswith("_to") else [])))


def values_of(op: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """``x [N, D]`` to the values of a call with text and several sequences; small changes leave its groups alone."""
    mask = can_merge(TEXT)
    if op == "pool":
        return lambda x: affinity_pool.pool(x, ints(0, 2, 2, 10), mergeable=mask, threshold=0.9).values
    masks = torch.stack([mask, mask.flip(0), mask])
    if op == "pool_to":
        return lambda x: affinity_pool.pool_to(x, 0.4, ints(0, 2, 2, 10), mergeable=mask).values
    if op == "pool_padded_to":
        return lambda x: affinity_pool.pool_padded_to(batch(x), [3, 0, 4], ints(7, 0, 10), left_padded=True).values
    return lambda x: affinity_pool.pool_padded(batch(x), ints(7, 0, 10), mergeable=masks, threshold=0.9).values


def opcheck_inputs() -> list:
    x, mask = spell(TEXT, 6, noise=0.1), can_merge(TEXT)
    return [
        pytest.param(OPS.pool.default, (x, None, None, 0.8, 3), id="pool"),
        pytest.param(OPS.pool.default, (x.bfloat16(), ints(0, 4, 4, 10), mask, 0.8, 1), id="pool, all arguments"),
        pytest.param(OPS.pool.default, (x.clone().requires_grad_(), ints(0, 10), None, 0.8, 3), id="pool, gradient"),
        pytest.param(OPS.pool.default, (x.t().contiguous().t(), None, mask, 2.0, 32), id="pool, strided"),
        pytest.param(OPS.pool.default, (x[:0], ints(0), None, 0.8, 3), id="pool, empty"),
        pytest.param(OPS.pool_padded.default, (batch(x), None, None, 0.8, 3), id="padded"),
        pytest.param(
            OPS.pool_padded.default,
            (batch(x).half(), ints(3, 0, 10), mask.expand(3, 10), 0.8, 1, True),
            id="padded, all arguments",
        ),
        pytest.param(
            OPS.pool_padded.default, (batch(x).requires_grad_(), ints(3, 0, 10), None, 0.8, 3), id="padded, gradient"
        ),
        pytest.param(OPS.pool_padded.default, (batch(x)[:, :0], None, None, 0.8, 3), id="padded, empty"),
        pytest.param(OPS.pool_to.default, (x, None, None, 0.5), id="to a share"),
        pytest.param(OPS.pool_to.default, (x.bfloat16(), ints(0, 4, 4, 10), mask, 0.5), id="to a share, all arguments"),
        pytest.param(OPS.pool_to.default, (x, ints(0, 4, 4, 10), None, 1.0, [2, 0, 3]), id="to ints"),
        pytest.param(OPS.pool_to.default, (x, ints(0, 4, 10), None, 1.0, [2]), id="to one int"),
        pytest.param(OPS.pool_to.default, (x, ints(0, 4, 10), None, 1.0, None, ints(2, 5)), id="to a tensor"),
        pytest.param(OPS.pool_to.default, (x.clone().requires_grad_(), None, None, 1.0, [4]), id="to ints, gradient"),
        pytest.param(OPS.pool_to.default, (x[:0], ints(0), None, 0.5), id="to a share, empty"),
        pytest.param(
            OPS.pool_padded_to.default,
            (batch(x).half(), ints(3, 0, 10), mask.expand(3, 10), 0.5, None, None, True),
            id="padded to a share, all arguments",
        ),
        pytest.param(OPS.pool_padded_to.default, (batch(x), None, None, 1.0, [2, 3, 4]), id="padded to ints"),
        pytest.param(
            OPS.pool_padded_to.default,
            (batch(x).requires_grad_(), ints(3, 0, 10), None, 1.0, None, ints(1, 0, 9), True),
            id="padded to a tensor, gradient",
        ),
    ]


@pytest.mark.parametrize(("op", "arguments"), opcheck_inputs())
def test_opcheck_passes_with_all_its_tests(op, arguments):
    torch.library.opcheck(op, arguments)


@every_op
def test_compiles_whole_and_does_not_recompile_for_a_new_length(op):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: called(op, x), backend=counter, fullgraph=True, dynamic=True)
    compiles = []
    for text in ("AAABB", "AABBCCBBA", "ABABABABABABABABA", "AAA"):
        x = rows_for(op, spell(text, 8))
        assert same_bits(compiled(x), called(op, x))
        compiles.append(counter.frame_count)
    assert compiles == compiles[:1] * 4


@pytest.mark.parametrize("op", ["pool_to", "pool_padded_to"])
def test_compiles_once_for_every_count(op):
    """Ints, and lists of them, are symbols of the graph: so is the number of rows that come out of it."""
    counter = CompileCounterWithBackend("aot_eager")
    function = getattr(affinity_pool, op)
    cu_seqlens, x = ([ints(0, 6, 10)], spell(TEXT, 8)) if op == "pool_to" else ([], batch(spell(TEXT, 8))[:2])

    def call(x: torch.Tensor, counts: list[int], count: int) -> tuple[torch.Tensor, ...]:
        return *function(x, counts, *cu_seqlens), *function(x, count, *cu_seqlens)

    compiled = torch.compile(call, backend=counter, fullgraph=True, dynamic=True)
    compiles = []
    for counts, count in (([5, 3], 2), ([4, 2], 3), ([3, 4], 4), ([2, 3], 2)):
        assert same_bits(compiled(x, counts, count), call(x, counts, count))
        compiles.append(counter.frame_count)
    assert compiles == compiles[:1] * 4


def test_a_count_makes_static_shapes():
    """What is fixed beforehand: the number of rows that come out needs no data."""
    graph = torch.export.export(ToFour(), (spell(TEXT, 8),)).graph_module.graph
    output = next(node for node in graph.nodes if node.op == "output")
    assert output.args[0][0].meta["val"].shape == (4, 8)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("counted", ["half", "rows_left", "list"])
def test_a_count_may_follow_from_a_length_that_is_not_known_yet(counted, strict):
    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = x.shape[0]
            if counted == "half":
                return affinity_pool.pool_to(x, rows // 2).values
            if counted == "list":
                return affinity_pool.pool_padded_to(x[None], [rows - 1]).lengths
            return affinity_pool.pool_to(x, affinity_pool.rows_left(rows, 0.3)).values

    length = torch.export.Dim("length", min=4, max=1000)
    exported = torch.export.export(Module(), (spell(TEXT, 8),), dynamic_shapes=({0: length},), strict=strict)
    for text in (TEXT, "AABBC", "ABCDEFGH"):
        assert torch.equal(exported.module()(spell(text, 8)), Module()(spell(text, 8)))


def test_a_compiled_count_that_cannot_be_is_refused_by_the_kernel():
    compiled = torch.compile(lambda x, k: affinity_pool.pool_to(x, k).values, backend="aot_eager", dynamic=True)
    assert len(compiled(spell(TEXT, 8), 3)) == 3
    for count in (0, 11):
        with pytest.raises((RuntimeError, ValueError), match=r"(keep|rows) must be"):
            compiled(spell(TEXT, 8), count)


def test_rows_of_a_number_that_data_tell_may_be_reduced_to_a_count():
    def twice(x: torch.Tensor) -> torch.Tensor:
        return affinity_pool.pool_to(affinity_pool.pool(x, threshold=0.9).values, 2).values

    x = spell(TEXT, 8)
    assert torch.equal(torch.compile(twice, backend="aot_eager", fullgraph=True)(x), twice(x))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((None, None, 1.0, [1, 2, 3]), "rows must be one int, or one for each of the 1"),
        ((None, None, 1.0, []), "rows must be one int, or one for each of the 1"),
        ((None, None, 1.0, [3], ints(3)), "rows and rows_tensor must not both be given"),
        ((None, can_merge(TEXT), 1.0, [3]), "mergeable must be None if rows are given"),
        ((None, None, 2.0), r"share must be a share of rows in \(0, 1\]"),
    ],
)
def test_the_fake_op_and_the_reference_refuse_what_kernels_do(arguments, words):
    x = spell(TEXT, 8)
    there = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments]
    with pytest.raises(ValueError, match=words):
        OPS.pool_to(x.to("meta"), *there)
    with affinity_pool.use("reference"), pytest.raises(ValueError, match=words):
        OPS.pool_to(x, *arguments)


class ToFour(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return affinity_pool.pool_to(x, 4).values


@every_op
def test_compiled_gradients_are_the_eager_ones(op):
    function, x = values_of(op), spell(TEXT, 8)
    weights = torch.randn(function(x).shape)

    def gradient(call: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        (call(leaf) * weights).sum().backward()
        return leaf.grad

    assert torch.equal(gradient(torch.compile(function, backend="aot_eager", fullgraph=True)), gradient(function))


def test_inductor_keeps_the_op_whole():
    compiled = torch.compile(lambda x: affinity_pool.pool(x, threshold=0.9), fullgraph=True)
    x = spell(TEXT, 8)
    assert same_bits(compiled(x), affinity_pool.pool(x, threshold=0.9))


@every_op
def test_exports_with_a_dynamic_length(op):
    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return called(op, x)

    def of(text: str) -> torch.Tensor:
        return rows_for(op, spell(text, 8))

    length = {1 if "padded" in op else 0: torch.export.Dim("length")}
    exported = torch.export.export(Module(), (of("AABBC"),), dynamic_shapes={"x": length})
    assert same_bits(exported.module()(of("AAABBBCCC")), Module()(of("AAABBBCCC")))


@every_op
def test_vmap_says_what_to_call_instead(op):
    x = torch.randn(2, 2, 4, 3) if "padded" in op else torch.randn(2, 4, 3)
    packed = op.replace("_padded", "")
    padded = packed.replace("pool", "pool_padded")
    words = rf"have no vmap rule: .*Call {padded} on the batch, or {packed} with cu_seqlens"
    with pytest.raises(NotImplementedError, match=words):
        torch.vmap(lambda rows: called(op, rows)[0])(x)


@every_op
@pytest.mark.parametrize("dtype", DTYPES)
def test_autocast_leaves_dtypes_alone(op, dtype):
    x = rows_for(op, spell(TEXT, 8, dtype))
    plain = called(op, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert same_bits(called(op, x), plain)


@every_op
@pytest.mark.filterwarnings("ignore:Input #. requires gradient and is not a double")
def test_gradcheck_and_gradgradcheck(op):
    """In float32, which is what the op takes: within a group the op is linear, so a large step is exact."""
    x = spell(TEXT, 5).requires_grad_()
    torch.autograd.gradcheck(values_of(op), (x,), eps=1e-2, atol=1e-4, rtol=1e-3)
    torch.autograd.gradgradcheck(values_of(op), (x,), eps=1e-2, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_row_gets_its_share_of_its_group_s_gradient(dtype):
    x = spell(TEXT, 8, dtype).requires_grad_()
    values, _, segment_ids, counts = affinity_pool.pool(x, mergeable=can_merge(TEXT), threshold=0.9)
    assert counts.tolist() == [3, 2, 1, 2, 2]
    weights = torch.randn(values.shape).to(dtype)
    (gradient,) = torch.autograd.grad(values, x, weights)
    expected = (weights.double() / counts.unsqueeze(1))[segment_ids.long()]
    torch.testing.assert_close(gradient, expected.to(dtype), rtol=torch.finfo(dtype).eps, atol=0)


@every_op
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [3, 257, 2049])
def test_gradients_are_no_worse_than_those_of_torch_s_mean(op, dtype, size):
    """257 and 2049 have no bfloat16 and no float16: a count must not be rounded to the dtype of the gradient."""
    x = spell("A" * size, 8, dtype)
    weights = torch.randn(1, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    truth = weights.double() / size

    def error(mean: Callable[[torch.Tensor], torch.Tensor]) -> float:
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(mean(leaf), leaf, weights)
        return (gradient.double() - truth).abs().max().item()

    def pooled(leaf: torch.Tensor) -> torch.Tensor:
        options = {"keep": 1} if op.endswith("_to") else {"threshold": 0.5}
        function = getattr(affinity_pool, op)
        return function(leaf.unsqueeze(0), **options).values[0, :1] if "padded" in op else function(leaf, **options)[0]

    assert error(pooled) <= error(lambda leaf: leaf.mean(0, keepdim=True))


def test_gradients_of_65536_float16_rows_do_not_vanish():
    """A count beyond float16 must not turn into infinity."""
    x = torch.ones(65536, 1, dtype=torch.float16, requires_grad=True)
    (gradient,) = torch.autograd.grad(affinity_pool.pool(x).values, x, torch.full((1, 1), 4.0, dtype=torch.float16))
    assert gradient.unique().tolist() == [2.0**-14]


def test_padding_has_no_gradient_and_gives_none():
    x = spell("AAB0", 8).unsqueeze(0).requires_grad_()
    for left, padding in ((False, slice(2, 4)), (True, slice(0, 2))):
        values = affinity_pool.pool_padded(x, ints(2), threshold=0.9, left_padded=left).values
        (gradient,) = torch.autograd.grad(values, x, torch.ones_like(values))
        assert gradient[0, padding].eq(0).all()
        assert gradient[0].ne(0).any(-1).sum() == 2


def test_boundaries_carry_no_gradient():
    packed = affinity_pool.pool(spell(TEXT, 8).requires_grad_())
    padded = affinity_pool.pool_padded(batch(spell(TEXT, 8)).requires_grad_())
    counted = affinity_pool.pool_to(spell(TEXT, 8).requires_grad_(), 3)
    for values, *boundaries in (packed, padded, counted):
        assert values.requires_grad
        assert not any(t.requires_grad for t in boundaries)


def test_a_nan_row_leaves_other_gradients_finite():
    x = spell("AA?BB", 8).requires_grad_()
    (gradient,) = torch.autograd.grad(affinity_pool.pool(x, threshold=0.9).values.nansum(), x)
    assert gradient[[0, 1, 3, 4]].eq(0.5).all()


@every_op
def test_no_graph_is_kept_without_need(op):
    x = spell(TEXT, 8).requires_grad_()
    with torch.no_grad():
        assert values_of(op)(x).grad_fn is None
    with torch.inference_mode():
        assert values_of(op)(x).is_inference()
    assert values_of(op)(x.detach()).grad_fn is None


def test_meta_tensors_have_the_padded_shapes():
    result = affinity_pool.pool_padded(torch.empty(2, 5, 3, device="meta", dtype=torch.bfloat16))
    assert [tuple(t.shape) for t in result] == [(2, 5, 3), (2,), (2, 5), (2, 5)]
    assert result.values.dtype == torch.bfloat16
    result = affinity_pool.pool_padded_to(torch.empty(2, 5, 3, device="meta"), 0.5)
    assert [tuple(t.shape) for t in result] == [(2, 5, 3), (2,), (2, 5), (2, 5)]
    result = affinity_pool.pool_to(torch.empty(5, 3, device="meta"), 2)
    assert [tuple(t.shape) for t in result] == [(2, 3), (2,), (5,), (2,)]
