"""Any arguments whatever: refused in a sentence of ours, or pooled as the reference pools them."""

from __future__ import annotations

import re
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

import affinity_pool
from affinity_pool import AffinityPooler, reference

from .cases import same_bits

OURS = re.compile(  # the compiled kernels put their place in front
    r"^(\w+, \S+:\d+, )?(x|chunk|cu_seqlens|lengths|mergeable|threshold|window|keep) must\b"
)
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.int64, torch.bool]
DTYPES += [torch.uint8, torch.complex64, torch.float8_e4m3fn]
CHANGES = ["no"] * 12 + ["t", "expand", "meta", "sparse", "grad", "step", "narrow", "neg", "param"]


@st.composite
def tensors(draw: st.DrawFn, dtypes: list[torch.dtype], dims: st.SearchStrategy[int]) -> torch.Tensor:
    """Small whole numbers, so that sums are exact and every implementation merges the same rows."""
    shape = draw(st.lists(st.integers(0, 4), min_size=(n := draw(dims)), max_size=n))
    numbers = torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    tensor = numbers.to(draw(st.sampled_from(dtypes)))
    change = draw(st.sampled_from(CHANGES))
    if change == "t" and tensor.dim() == 2:
        return tensor.t()
    if change == "expand":
        return tensor.expand(2, *tensor.shape)
    if change == "meta":
        return tensor.to("meta")
    if change == "sparse" and tensor.dtype != torch.float8_e4m3fn:
        return tensor.to_sparse()
    if change in ("grad", "param") and tensor.is_floating_point():
        return torch.nn.Parameter(tensor) if change == "param" else tensor.requires_grad_()
    if change == "step" and tensor.dim():
        return tensor[::2]
    if change == "narrow" and tensor.dim():
        return tensor[1:]
    return torch._neg_view(tensor) if change == "neg" and tensor.dtype in DTYPES[:6] else tensor


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers(0, 3), max_size=3),
    tensors(DTYPES, st.integers(0, 3)),
    st.lists(st.floats(-2, 2, width=32), max_size=3).map(lambda numbers: torch.tensor(numbers).numpy()),
)


def mostly(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 7).flatmap(lambda choice: usual if choice else anything)


@st.composite
def bounds(draw: st.DrawFn) -> torch.Tensor:
    return torch.tensor(sorted(draw(st.lists(st.integers(0, 4), max_size=4))), dtype=torch.int32)


arguments = st.fixed_dictionaries(
    {
        "index": mostly(st.none() | bounds() | st.just(torch.tensor([0, 2, 2], dtype=torch.int32))),
        "mergeable": mostly(st.none() | tensors([torch.bool], st.integers(1, 2))),
        "threshold": mostly(st.sampled_from([0.8, 0, 1, 2, -1, float("inf"), 10**40])),
        "window": mostly(st.integers(0, 33)),
        "keep": mostly(
            st.sampled_from([0.5, 1.0, 0.01])
            | st.integers(0, 4)
            | st.lists(st.integers(0, 3), max_size=3)
            | tensors([torch.int32], st.just(1))
        ),
    }
)


def outcome(function: Any, *given: Any, **options: Any) -> tuple[torch.Tensor, ...] | str:
    try:
        return tuple(function(*given, **options))
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        return str(error).partition("\nException raised")[0]


def same(ours: tuple[torch.Tensor, ...] | str, judge: tuple[torch.Tensor, ...] | str) -> bool:
    if isinstance(ours, str) or isinstance(judge, str):
        return isinstance(ours, str) and isinstance(judge, str)
    return same_bits([t.detach() for t in ours[1:]], [t.detach() for t in judge[1:]]) and torch.allclose(
        ours[0].float(), judge[0].float(), atol=1e-2, equal_nan=True
    )


@pytest.mark.parametrize("op", ["pool", "pool_padded", "pool_to", "pool_padded_to"])
@hypothesis.given(data=st.data(), given=arguments)
def test_any_arguments_are_refused_in_words_or_pooled_right(op, data, given):
    x = data.draw(mostly(tensors(DTYPES[:3], st.just(3 if "padded" in op else 2))))
    chosen = ("mergeable", "keep") if op.endswith("_to") else ("mergeable", "threshold", "window")
    options = {name: given[name] for name in chosen}
    index = {"lengths" if "padded" in op else "cu_seqlens": given["index"]}
    found = outcome(getattr(affinity_pool, op), x, **index, **options)
    if isinstance(found, tuple) and found[0].is_meta:
        assert op != "pool"
        return
    assert same(found, outcome(getattr(reference, op), x, **index, **options)), found
    if isinstance(found, str):
        assert OURS.match(found), found


@hypothesis.given(chunks=st.lists(mostly(tensors(DTYPES[:3], st.just(2))), max_size=4))
def test_a_stream_refuses_in_words_or_goes_on(chunks):
    pooler, taken = AffinityPooler(), []
    for chunk in chunks:
        found = outcome(pooler.step, chunk)
        if isinstance(found, str):
            assert OURS.match(found), found
        else:
            taken.append((chunk.detach(), found))
    rows = sum(chunk.shape[0] for chunk, _ in taken)
    assert rows == sum(int(counts.sum()) for _, (_, counts) in taken) + (int(pooler.flush().counts) if rows else 0)
