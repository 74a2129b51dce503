"""A stream on a GPU gives what one call gives there, bit for bit, however it is cut."""

from __future__ import annotations

import pytest
import torch
from op.cases import DTYPES, same_bits

from affinity_pool import AffinityPooler, pool

from .batches import plateaus

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("window", "threshold"), [(1, 0.8), (3, 0.8), (32, 0.8), (3, -1.0), (3, 1.5)])
@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_any_chunking_equals_one_call(
    backend: str, dtype: torch.dtype, window: int, threshold: float, chunk: int
) -> None:
    """Groups of up to nine rows, one of all of them, and none."""
    x = plateaus(150, 520, dtype=dtype, seed=window)
    whole = pool(x, threshold=threshold, window=window)
    pooler = AffinityPooler(threshold=threshold, window=window)
    parts = [pooler.step(rows) for rows in x.split(chunk)] + [pooler.flush()]
    streamed = tuple(torch.cat(column) for column in zip(*parts, strict=True))
    assert same_bits(streamed, (whole.values, whole.counts))


def test_rows_apart_are_streamed_too(backend: str) -> None:
    x = plateaus(90, 256, seed=5)
    roomy = torch.full((90, 259), torch.nan, dtype=x.dtype, device="cuda")
    roomy[:, 1:257] = x
    pooler = AffinityPooler(threshold=0.8)
    parts = [pooler.step(rows) for rows in roomy[:, 1:257].split(11)] + [pooler.flush()]
    whole = pool(x, threshold=0.8)
    assert same_bits(tuple(torch.cat(column) for column in zip(*parts, strict=True)), (whole.values, whole.counts))
