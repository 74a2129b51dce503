"""The benchmark's data: its groups are known, proved and the reference's, and a wrong output is never timed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from affinity_pool import pool, pool_padded
from affinity_pool.benchmarks.cases import (
    DTYPES,
    Case,
    Data,
    WrongOutputError,
    check_margin,
    check_output,
    check_padded,
    group_means,
    make_data,
)
from affinity_pool.benchmarks.contenders import CONTENDERS, PADDED

SMALL = Case(60, dim=96)


def groups(data: Data) -> torch.Tensor:
    return pool(data.x, data.rule.cu_seqlens, threshold=data.rule.threshold, window=data.rule.window).segment_ids.long()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [1, 3, 32])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("retention", [0.15, 0.8, 1.0])
def test_known_groups_are_the_reference_s(
    monkeypatch: pytest.MonkeyPatch, dtype: str, window: int, batch: int, retention: float
) -> None:
    case = replace(SMALL, dtype=dtype, window=window, batch=batch, retention=retention)
    judged = make_data(case)
    monkeypatch.setattr("affinity_pool.benchmarks.cases.REFERENCE_ROWS", 0)
    known = make_data(case)
    assert torch.equal(known.x, judged.x)
    assert known.longest == judged.longest
    assert known.retention == pytest.approx(retention, abs=0.01)
    torch.testing.assert_close(known.expected, judged.expected, rtol=torch.finfo(known.x.dtype).eps, atol=1e-6)


def test_groups_that_are_not_what_the_rows_say_are_refused() -> None:
    data = make_data(SMALL)
    group = groups(data)
    check_margin(data.x, group, data.rule)
    at = int((group.diff() == 0).nonzero()[0]) + 1
    split = group + (torch.arange(len(group)) >= at)
    with pytest.raises(ValueError, match=r"data must keep 0\.02 from the threshold, got -0\.\d+ at lag 1"):
        check_margin(data.x, split, data.rule)
    with pytest.raises(ValueError, match="must keep"):
        check_margin(data.x, torch.zeros_like(group), data.rule)


def test_a_similarity_near_the_threshold_is_refused() -> None:
    data = make_data(SMALL)
    cosine = torch.nn.functional.cosine_similarity(data.x[:-1], data.x[1:]).max()
    near = replace(data.rule, threshold=float(cosine) - 0.01)
    with pytest.raises(ValueError, match=r"got 0\.0\d+ at lag 1|got -0\.\d+ at lag 1"):
        check_margin(data.x, groups(data), near)


def test_means_are_rounded_once() -> None:
    x = torch.tensor([[1.0], [1.0078125], [1.0078125], [3.0]]).bfloat16()
    assert group_means(x, torch.tensor([0, 0, 0, 1])).tolist() == [[1.0078125], [3.0]]


@pytest.mark.parametrize("name", ["clone", "ours", "vectorised", "paper's loop"])
def test_contenders_pass(name: str) -> None:
    """torch.compile, too, whenever it is timed; compiling takes too long here."""
    data = make_data(replace(SMALL, batch=3))
    check_output(name, CONTENDERS[name](data.rule), data)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_padded_op_passes(batch: int) -> None:
    data = make_data(replace(SMALL, batch=batch))
    check_padded("ours", PADDED["ours"](data.rule)(data.x), data)


def test_a_wrong_output_is_refused() -> None:
    data = make_data(SMALL)
    right = CONTENDERS["ours"](data.rule)
    with pytest.raises(WrongOutputError, match="ours must return"):
        check_output("ours", lambda x: right(x)[1:], data)
    with pytest.raises(WrongOutputError, match="ours is off by"):
        check_output("ours", lambda x: right(x).flip(0), data)
    with pytest.raises(WrongOutputError, match="ours is off by nan"):
        check_output("ours", lambda x: right(x) * torch.nan, data)


def test_a_padded_output_wrong_past_its_groups_is_refused() -> None:
    data = make_data(replace(SMALL, batch=2))
    result = pool_padded(data.rule.batch(data.x))
    result.values[1, int(result.lengths[1]) :] = 1e-30
    with pytest.raises(WrongOutputError, match="must return zeros where no group is"):
        check_padded("ours", result, data)
