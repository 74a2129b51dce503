"""The op on the current stream: in order with it, beside others, never waiting for the device."""

from __future__ import annotations

import threading

import pytest
import torch
from op.cases import same_bits

from affinity_pool import pool, pool_padded

from . import child
from .batches import Batch, plateaus

pytestmark = pytest.mark.gpu

A_WHILE = 50_000_000  # cycles: some 25 ms in which nothing behind on the stream starts


@pytest.fixture
def no_waiting():
    """Any call that waits for the device raises, in the part of the test after it asks for this."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("op", ["pool", "pool_padded"])
def test_waits_for_what_its_stream_still_has_to_write(backend: str, op: str) -> None:
    x = plateaus(1, 500, 1024)
    x = x[0] if op == "pool" else x
    call = pool if op == "pool" else pool_padded
    expected = call(x)
    stream, late = torch.cuda.Stream(), torch.zeros_like(x)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(A_WHILE)
        late.copy_(x)
        result = call(late)
    stream.synchronize()
    assert same_bits(result, expected)


def test_what_comes_after_on_its_stream_sees_its_result(backend: str) -> None:
    x, stream = plateaus(4, 1500, 2048), torch.cuda.Stream()
    expected = pool_padded(x).values * 2
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        doubled = pool_padded(x).values * 2
    stream.synchronize()
    assert torch.equal(doubled, expected)


def test_does_not_wait_for_another_stream(backend: str) -> None:
    x, busy, free = plateaus(1, 100, 256), torch.cuda.Stream(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(free):
        pool_padded(x)  # compiled and loaded, its scratch memory there
    torch.cuda.synchronize()
    with torch.cuda.stream(busy):
        torch.cuda._sleep(20 * A_WHILE)
    with torch.cuda.stream(free):
        pool_padded(x)
    free.synchronize()
    assert not busy.query()
    torch.cuda.synchronize()


@pytest.mark.parametrize("masked", [False, True])
def test_pool_padded_never_waits_for_the_device(backend: str, no_waiting, masked: bool) -> None:
    """Not by torch's means, which the debug mode sees, nor by others: it returns while its stream still sleeps."""
    x = plateaus(3, 200, 512)
    lengths = torch.tensor([200, 0, 77], dtype=torch.int32).cuda() if masked else None
    batch = Batch(x, lengths, torch.rand(3, 200).cuda() > 0.1 if masked else None, left_padded=masked)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        expected = batch.pool()
        stream.synchronize()
        torch.cuda._sleep(20 * A_WHILE)
        no_waiting()
        results = [batch.pool() for _ in range(3)]
        torch.cuda.set_sync_debug_mode("default")
        assert not stream.query()
    torch.cuda.synchronize()
    assert all(same_bits(result, expected) for result in results)


def test_neither_does_its_gradient(backend: str, no_waiting) -> None:
    x = plateaus(2, 100, 64, dtype=torch.float32).requires_grad_()
    weights = torch.randn_like(x)
    pool_padded(x).values.backward(weights)
    first, x.grad = x.grad, None
    no_waiting()
    pool_padded(x).values.backward(weights)
    torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(x.grad, first)


def test_shapes_follow_each_other_on_one_stream(backend: str) -> None:
    """Scratch memory grows, is used in part, and is used again: with nothing of the calls before left in it."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for seed in range(40):
        rows, width = (int(torch.randint(1, most, (), generator=generator)) for most in (9, 400))
        dim = [8, 33, 64, 200, 1024, 4096][seed % 6]
        lengths = torch.randint(0, width + 1, (rows,), generator=generator, dtype=torch.int32).cuda()
        window = [1, 3, 8, 32][seed % 4]
        batches.append(Batch(plateaus(rows, width, dim, seed=seed), lengths, window=window, left_padded=seed % 2 == 1))
    results = [batch.pool() for batch in batches]
    for batch, result in zip(batches, results, strict=True):
        batch.assert_obeyed_by(result)


def shapes_on_streams_at_once(threads: bool) -> None:
    batches = [Batch(plateaus(1 + i, 1500 // (1 + i), 1024, seed=i), window=(1, 3, 32)[i % 3]) for i in range(4)]
    expected = [batch.pool() for batch in batches]
    torch.cuda.synchronize()
    streams, wrong = [torch.cuda.Stream() for _ in batches], []

    def work(i: int, rounds: int) -> None:
        with torch.cuda.stream(streams[i]):
            results = [batches[i].pool() for _ in range(rounds)]
        streams[i].synchronize()
        wrong.extend(i for result in results if not same_bits(result, expected[i]))

    if threads:
        workers = [threading.Thread(target=work, args=(i, 100)) for i in range(len(batches))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    else:
        results: list[list] = [[] for _ in batches]
        for _ in range(100):
            for i, batch in enumerate(batches):
                with torch.cuda.stream(streams[i]):
                    results[i].append(batch.pool())
        torch.cuda.synchronize()
        wrong += [i for i, some in enumerate(results) for result in some if not same_bits(result, expected[i])]
    assert not wrong


@pytest.mark.parametrize("threads", [False, True], ids=["one thread", "a thread each"])
def test_streams_do_not_disturb_each_other(backend: str, threads: bool) -> None:
    child.run(shapes_on_streams_at_once, backend, threads)


@pytest.mark.parametrize("op", ["pool", "pool_padded"])
@pytest.mark.parametrize("window", [1, 3, 32])
def test_every_run_gives_the_same_bits(backend: str, op: str, window: int) -> None:
    """With a neighbour on another stream, so that blocks start and end in other orders each time."""
    x, noise = plateaus(4, 1000, 1536), torch.randn(2048, 2048, device="cuda")
    rows = x.view(-1, x.shape[-1])

    def call():
        return pool(rows, window=window) if op == "pool" else pool_padded(x, window=window)

    first, side = call(), torch.cuda.Stream()
    for i in range(50):
        if i % 2:
            with torch.cuda.stream(side):
                noise = (noise @ noise).tanh()
        assert same_bits(call(), first)


def test_a_long_group_is_summed_the_same_way_each_time(backend: str) -> None:
    """Five thousand rows through many tiles and their partial sums."""
    x = torch.ones(1, 5000, 512, device="cuda") + 0.1 * torch.randn(1, 5000, 512, device="cuda")
    first = Batch(x).pool()
    assert first.lengths.tolist() == [1]
    assert all(same_bits(Batch(x).pool(), first) for _ in range(20))
    truth = x.double().mean(1)
    assert (first.values[:, 0] - truth).abs().max() < 1e-4
