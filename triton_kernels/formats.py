"""bfloat16 to float32 and back, as what it is: the upper half of the bits.

A cast would take three instructions where this takes two to widen a pair. And the tests run in Triton's interpreter,
whose casts cut where they should round, and take subnormals for other numbers.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def widened(values: tl.tensor) -> tl.tensor:
    if values.dtype == tl.bfloat16:
        values = (values.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return values.to(tl.float32)


@triton.jit
def rounded(values: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """To the nearest, or to even, if no value is NaN: a mean never is, for a row that holds one stays alone."""
    if dtype == tl.bfloat16:
        bits = values.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        values = bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return values.to(dtype)
