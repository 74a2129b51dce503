"""The benchmarks and the full-size study, on small inputs: that they run on a GPU and time what they say they time.

Run by itself, without pytest-xdist: who else uses the GPU meanwhile changes the times.
"""

from __future__ import annotations

import pytest
import torch

from affinity_pool import pool_padded
from affinity_pool.benchmarks import gpu
from affinity_pool.benchmarks.cases import Case, WrongOutputError, make_data
from affinity_pool.benchmarks.contenders import CONTENDERS, PADDED, Rule
from affinity_pool.benchmarks.measure import Options
from affinity_pool.benchmarks.timing import Call, captured, interleave

pytestmark = pytest.mark.gpu

BRIEF = Options(device="cuda", rounds=5, seconds=0.05, echo=lambda _: None)


@pytest.mark.parametrize("cache", ["warm", "cold"])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_form_is_timed(backend: str, cache: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("affinity_pool.benchmarks.measure.COLD_BYTES", 16 << 20)
    case = Case(300, dim=1024, dtype="bfloat16", batch=batch, cache=cache)
    record = gpu.measure(case, ("clone", "ours", "vectorised", "paper's loop"), BRIEF)
    assert "failed" not in record
    forms = {name: list(entry) for name, entry in record["contenders"].items()}
    assert forms["clone"] == forms["ours"] == ["graph", "eager", "whole"]
    assert forms["vectorised"] == forms["paper's loop"] == ["whole"]
    for form in forms["ours"]:
        assert record["contenders"]["ours"][form]["us"]["p50"] > 0.5


def test_torch_compile_is_timed() -> None:
    record = gpu.measure(Case(100, dim=256, dtype="bfloat16"), ("clone", "ours", "torch.compile"), BRIEF)
    assert record.get("failed", {}) == {}
    assert list(record["contenders"]["torch.compile"]) == ["whole"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_data_made_here_has_the_groups_it_was_made_of(
    backend: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(200, dim=512, dtype=dtype, window=8, batch=2)
    judged = make_data(case, "cuda")
    monkeypatch.setattr("affinity_pool.benchmarks.cases.REFERENCE_ROWS", 0)
    known = make_data(case, "cuda")
    assert torch.equal(known.x, judged.x)
    torch.testing.assert_close(known.expected, judged.expected, rtol=torch.finfo(known.x.dtype).eps, atol=1e-6)


def test_a_graph_that_computes_something_else_is_not_timed(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right when called, wrong when replayed."""

    def ours(rule: Rule):
        def pool(x: torch.Tensor):
            result = pool_padded(rule.batch(x), threshold=rule.threshold, window=rule.window)
            if torch.cuda.is_current_stream_capturing():
                result.values.mul_(2)
            return result

        return pool

    monkeypatch.setitem(PADDED, "ours", ours)
    with pytest.raises(WrongOutputError, match="ours is off by"):
        gpu.measure(Case(100, dim=256), ("clone", "ours"), BRIEF)


def test_a_graph_takes_its_inputs_in_turn() -> None:
    inputs = [torch.full((4,), float(i), device="cuda") for i in range(3)]
    seen = torch.zeros(4, device="cuda")
    call, last = captured(lambda x: seen.add_(x) * 1, inputs, 5)  # the call before the capture adds 0
    assert call.calls == 5
    call.function(inputs[0])
    torch.cuda.synchronize()
    assert seen.tolist() == last.tolist() == [0 + 1 + 2 + 0 + 1.0] * 4


def test_a_graph_costs_what_the_device_takes_and_eager_calls_what_the_host_takes() -> None:
    """For a kernel that hardly takes time; and both the same for one that takes long. A sample divided by a wrong
    number of calls is off by a factor of ten or more: the bounds leave room for clocks that change meanwhile."""
    for size, low, high in ((1 << 10, 1.1, 1000), (1 << 28, 0.7, 1.4)):
        x = torch.randn(size, device="cuda")
        graph, _ = captured(torch.clone, [x], 20)
        samples = interleave({"eager": Call(torch.clone), "graph": graph}, [x], rounds=10, seconds=0.2)
        assert low < samples["eager"].against(samples["graph"])["p50"] < high


def test_contenders_of_the_gpu_suites_exist() -> None:
    assert set(gpu.FAST) <= set(CONTENDERS)
    assert set(PADDED) <= set(gpu.FAST)


def test_a_prefill_is_measured(backend: str) -> None:
    pytest.importorskip("transformers", reason="needs transformers")
    from affinity_pool.study.experiments.cost.architectures import random_model, tiny
    from affinity_pool.study.experiments.cost.measure import Options, measure
    from affinity_pool.study.experiments.cost.prompts import forced_cases
    from affinity_pool.study.subject.subject import Subject

    subject = Subject(random_model(tiny(), torch.device("cuda"), torch.bfloat16))
    for case in [*forced_cases(subject, [1.0], [1]), *forced_cases(subject, [5.0], [3])]:
        record = measure(subject, case, Options(rounds=6, new_tokens=3, idle=True))
        unpooled, pooled = record["dynamic_bytes"]
        assert 0 < pooled <= unpooled
        assert record["kv_bytes"][1] < record["kv_bytes"][0]
        for parts in record["parts"].values():
            assert all(seconds >= 0 for seconds in parts.values())
            assert sum(parts.values()) > 0
