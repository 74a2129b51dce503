"""What reaches a device is what the test laid out."""

from __future__ import annotations

import pytest
import torch

from .cases import DTYPES, LAYOUTS, lay_out
from .implementations import there


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 10), (2, 3, 10), (0, 10)])
def test_strides_and_offset_are_kept(layout: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = lay_out(torch.ones(shape, dtype=dtype), layout)
    y = there(x, "meta")
    assert (y.device.type, y.dtype) == ("meta", dtype)
    assert (y.shape, y.stride(), y.storage_offset()) == (x.shape, x.stride(), x.storage_offset())
