"""``pytest benchmarks``: the contenders on one shape each, for whoever changes a kernel; outputs are checked first.

For figures to publish use ``affinity-pool bench``: it interleaves what this times one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import affinity_pool
from affinity_pool.bench.cases import Case, check_output, make_data
from affinity_pool.bench.contenders import CONTENDERS
from affinity_pool.bench.sweep import ON_CPU
from affinity_pool.bench.timing import keep_freed_memory

CASES = [Case(750, dtype=dtype) for dtype in ("float32", "bfloat16", "float16")]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ON_CPU)
@pytest.mark.parametrize("case", CASES, ids=str)
def bench_pool(benchmark: BenchmarkFixture, case: Case, name: str) -> None:
    data = make_data(case)
    pool = CONTENDERS[name](data.rule)
    check_output(name, pool, data)
    benchmark.group = str(case)
    benchmark(pool, data.x)


@pytest.mark.parametrize("window", [1, 8, 32])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def bench_window(benchmark: BenchmarkFixture, dtype: str, window: int) -> None:
    data = make_data(Case(750, dtype=dtype, window=window))
    pool = CONTENDERS["ours"](data.rule)
    check_output("ours", pool, data)
    benchmark.group = f"window, {dtype}"
    benchmark(pool, data.x)


@pytest.mark.parametrize("what", ["torch.add", "op", "pool", "pool_padded"])
def bench_overhead(benchmark: BenchmarkFixture, what: str) -> None:
    x = torch.randn(1, 64)
    benchmark.group = "a call on [1, 64]"
    if what == "torch.add":
        benchmark(torch.add, x, x)
    elif what == "op":
        benchmark(torch.ops.affinity_pool.pool.default, x, None, None, 0.8, 3)
    elif what == "pool":
        benchmark(affinity_pool.pool, x)
    else:
        benchmark(affinity_pool.pool_padded, x.unsqueeze(0))
