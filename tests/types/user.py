"""What somebody writes who uses the package, and the types that a checker must see in it. It is read, and not run."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import affinity_pool
from affinity_pool import AffinityPooler, Backend, Closed, Pooled, PooledPadded, Site, patch, unpatch
from affinity_pool.models import FAMILIES, PRESETS, Family, Handle, Layer, PrefillStats, SiteStats
from affinity_pool.serving import Embedded, embed


def the_op(x: Tensor, batch: Tensor, lengths: Tensor) -> None:
    pooled = affinity_pool.pool(x, lengths, mergeable=None, threshold=0.8, window=3)
    assert_type(pooled, Pooled)
    values, cu_seqlens, segment_ids, counts = pooled
    assert_type(values, Tensor)
    assert_type(counts, Tensor)
    assert_type(affinity_pool.pool_padded(batch, lengths, left_padded=True), PooledPadded)
    assert_type(affinity_pool.pool_padded(batch).lengths, Tensor)
    for keep in (0.5, 375):
        assert_type(affinity_pool.pool_to(x, keep), Pooled)
    assert_type(affinity_pool.pool_to(x, [3, 4], lengths), Pooled)
    assert_type(affinity_pool.pool_padded_to(batch, lengths, lengths), PooledPadded)
    assert_type(affinity_pool.rows_left(750, 0.5), int)
    assert_type(affinity_pool.reference.pool(x), Pooled)
    raw: tuple[Tensor, ...] = torch.ops.affinity_pool.pool(x, None, None, 0.8, 3)
    print(raw, cu_seqlens, segment_ids)

    affinity_pool.pool(x, threshold="high")  # refused: threshold
    affinity_pool.pool(x, keep=3)  # refused: keep
    affinity_pool.pool_to(x, "half")  # refused: pool_to


def a_stream(chunks: list[Tensor]) -> Tensor:
    pooler = AffinityPooler(threshold=0.8, window=3)
    closed = [pooler.step(chunk) for chunk in chunks]
    assert_type(closed, list[Closed])
    return torch.cat([*(groups.values for groups in closed), pooler.flush().values])


def the_backends() -> None:
    assert_type(affinity_pool.backends(), list[Backend])
    affinity_pool.use("cpu")
    with affinity_pool.use("reference"):
        print([backend.detail for backend in affinity_pool.backends() if backend.available])


def the_patch(model: nn.Module) -> None:
    sites = [Site(layer=0, threshold=0.9, window=1), Site(layer=29, keep=0.5), Site("memory", threshold=0.96, window=1)]
    with affinity_pool.patch(model, sites, positions="keep") as handle:
        assert_type(handle, Handle)
        assert_type(handle.sites, tuple[Site, ...])
        assert_type(handle.running, bool)
        stats = handle.stats
        assert_type(stats, PrefillStats | None)
        if stats is not None:
            assert_type(stats.sites, tuple[SiteStats, ...])
            assert_type(stats.sites[0].audio_after, list[int])
            assert_type(stats.sites[0].threshold, float | None)
            assert_type(stats.sites[0].audio_kept, float)
            assert_type(stats.kv_bytes_saved, int)
    assert_type(patch(model, "aggressive"), Handle)
    assert_type(sites[0].layer, Layer)
    assert_type(PRESETS["aggressive"], tuple[Site, Site])
    assert_type(FAMILIES["qwen2_audio"], Family)
    unpatch(model)

    affinity_pool.patch(model, positions="kept")  # refused: positions
    affinity_pool.patch(model, [0, 29])  # refused: Site
    Site(layer=0, treshold=0.9)  # refused: treshold
    print(handle.stats.sites)  # refused: None


def in_front_of_an_engine(model: nn.Module, inputs: dict[str, Tensor]) -> None:
    (embedded,) = embed(model, inputs, [Site(0, keep=0.5)])
    assert_type(embedded, Embedded)
    assert_type(embedded.prompt_embeds, Tensor)
    assert_type(embedded.audio_after, list[int])
