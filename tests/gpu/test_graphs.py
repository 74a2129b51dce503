"""``pool_padded`` in CUDA graphs: captured, replayed on new inputs, alternately, at once, with eager calls between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from op.cases import same_bits

from affinity_pool import PooledPadded

from . import child
from .batches import Batch, plateaus

pytestmark = pytest.mark.gpu


class Captured:
    """A graph of one call on buffers of its own."""

    def __init__(self, batch: Batch, stream: torch.cuda.Stream | None = None, warm: bool = True) -> None:
        self.batch = batch
        self.graph = torch.cuda.CUDAGraph()
        stream = stream or torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        if warm:
            with torch.cuda.stream(stream):
                batch.pool()
        torch.cuda.synchronize()
        with torch.cuda.graph(self.graph, stream=stream):
            self.result = batch.pool()

    def replay(self, x: torch.Tensor) -> PooledPadded:
        self.batch.x.copy_(x)
        self.graph.replay()
        return PooledPadded(*(t.clone() for t in self.result))


def padded(*shape: int, seed: int = 0, **options: object) -> Batch:
    """A batch whose rows have different lengths, some none at all, and text in between."""
    rows, width, _ = shape
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, width + 1, (rows,), generator=generator, dtype=torch.int32)
    mergeable = torch.rand(rows, width, generator=generator) > 0.05
    return Batch(plateaus(*shape, seed=seed), lengths.cuda(), mergeable.cuda(), left_padded=True, **options)


def fresh(batch: Batch, seed: int) -> torch.Tensor:
    return plateaus(*batch.x.shape, dtype=batch.x.dtype, seed=seed)


def eager(batch: Batch, x: torch.Tensor) -> PooledPadded:
    return Batch(x, batch.lengths, batch.mergeable, batch.threshold, batch.window, batch.left_padded).pool()


@contextmanager
def on(stream: torch.cuda.Stream) -> Iterator[None]:
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield


@pytest.mark.parametrize("shape", [(1, 750, 4096), (5, 301, 520), (3, 7, 33)])
@pytest.mark.parametrize("window", [1, 3, 32])
def test_a_replay_pools_what_is_in_the_buffer_now(backend: str, shape: tuple[int, ...], window: int) -> None:
    captured = Captured(padded(*shape, window=window))
    for seed in range(1, 6):
        x = fresh(captured.batch, seed)
        result = captured.replay(x)
        assert same_bits(result, eager(captured.batch, x))
    Batch(x, captured.batch.lengths, captured.batch.mergeable, window=window, left_padded=True).assert_obeyed_by(result)


def test_lengths_and_mask_may_change_between_replays(backend: str) -> None:
    captured = Captured(padded(4, 200, 256))
    for seed in range(1, 6):
        other = padded(4, 200, 256, seed=seed)
        captured.batch.lengths.copy_(other.lengths)
        captured.batch.mergeable.copy_(other.mergeable)
        assert same_bits(captured.replay(other.x), other.pool())


def test_a_graph_replayed_many_times_stays_right(backend: str) -> None:
    """Counters that a launch leaves behind for the next one must come round."""
    captured = Captured(padded(2, 300, 512))
    x = fresh(captured.batch, 1)
    first = captured.replay(x)
    for _ in range(2000):
        captured.graph.replay()
    assert same_bits(captured.result, first)


def test_capture_needs_no_call_before_it_on_its_stream(backend: str) -> None:
    padded(3, 150, 128, seed=9).pool()  # compiled and loaded, on another stream
    captured = Captured(padded(3, 150, 128), warm=False)
    x = fresh(captured.batch, 1)
    assert same_bits(captured.replay(x), eager(captured.batch, x))


def test_two_graphs_take_turns(backend: str) -> None:
    one, two = Captured(padded(1, 750, 1024)), Captured(padded(6, 90, 384, seed=5))
    for seed in range(1, 8):
        for captured in (one, two) if seed % 2 else (two, one):
            x = fresh(captured.batch, seed)
            assert same_bits(captured.replay(x), eager(captured.batch, x))


def test_eager_calls_in_between_change_nothing(backend: str) -> None:
    stream = torch.cuda.Stream()
    captured = Captured(padded(2, 400, 640), stream)
    x = fresh(captured.batch, 1)
    first = captured.replay(x)
    for seed in range(8):
        with on(stream):  # the stream it was captured on
            aside = padded(1, 50 + 97 * seed, 320, seed=seed)
            result = aside.pool()
        torch.cuda.synchronize()
        aside.assert_obeyed_by(result)
        assert same_bits(captured.replay(x), first)


def test_a_graph_of_many_calls(backend: str) -> None:
    batches = [padded(2, 60 + 50 * i, 256, seed=i) for i in range(6)]
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with on(stream):
        expected = [batch.pool() for batch in batches]
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        results = [batch.pool() for batch in batches]
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    assert all(map(same_bits, results, expected))


def test_graphs_come_and_go(backend: str) -> None:
    """What one leaves behind serves the next, which may be larger or smaller; some live on meanwhile."""
    lasting = Captured(padded(2, 200, 256))
    x = fresh(lasting.batch, 1)
    first = lasting.replay(x)
    for seed in range(30):
        captured = Captured(padded(1 + seed % 5, 40 + 97 * (seed % 7), 128, seed=seed))
        other = fresh(captured.batch, seed + 1)
        for _ in range(3):
            assert same_bits(captured.replay(other), eager(captured.batch, other))
        assert same_bits(lasting.replay(x), first)
        del captured


def test_nothing_stays_in_somebody_s_memory_pool(backend: str) -> None:
    """torch.compile's CUDA graphs warm up in a pool of their own, and raise if a block is left in it."""
    batch, pool = padded(2, 300, 256), torch.cuda.MemPool()
    with on(torch.cuda.Stream()), torch.cuda.use_mem_pool(pool):
        batch.pool()
    torch.cuda.synchronize()
    blocks = [block for segment in pool.snapshot() for block in segment["blocks"]]
    assert blocks
    assert not [block for block in blocks if block["state"] == "active_allocated"]


def on_two_streams(capture_streams: str) -> None:
    """Replays of two graphs overlap again and again. Sharing scratch memory, they would spoil or await each other."""
    one_stream = torch.cuda.Stream()
    streams = [one_stream, one_stream] if capture_streams == "one" else [torch.cuda.Stream() for _ in range(2)]
    graphs = [
        Captured(padded(8, 1500, 1024, seed=i), stream) for i, stream in enumerate(streams)
    ]  # a thousand tiles or more each: both are under way at once
    expected = [eager(captured.batch, captured.batch.x) for captured in graphs]
    torch.cuda.synchronize()
    players = [torch.cuda.Stream() for _ in graphs]
    for _ in range(200):
        for captured, player in zip(graphs, players, strict=True):
            with torch.cuda.stream(player):
                captured.graph.replay()
    torch.cuda.synchronize()
    for captured, right in zip(graphs, expected, strict=True):
        assert same_bits(captured.result, right)


@pytest.mark.parametrize("capture_streams", ["one", "two"])
def test_two_graphs_run_at_once(backend: str, capture_streams: str) -> None:
    """Captured on one stream, as ``torch.cuda.graph`` does by itself, or on two."""
    body: Callable[..., None] = on_two_streams
    child.run(body, backend, capture_streams)
