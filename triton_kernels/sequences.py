"""Where the rows of a sequence lie, as the kernels see it.

A call is a number of sequences of ``rows`` rows each: B of T for a padded batch, and one of N for packed sequences, in
which ``cu_seqlens`` marks rows that begin a group. ``lengths`` says how many rows of a padded sequence are valid.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def valid_rows(lengths: tl.tensor, sequence: tl.tensor, rows: tl.tensor, left: tl.constexpr) -> tl.tuple:
    """First valid row and the end of the valid rows. Lengths are clamped: their contents cannot be checked on a GPU."""
    count = rows
    if lengths is not None:
        count = tl.minimum(tl.maximum(tl.load(lengths + sequence), 0), rows)
    first = rows - count if left else 0
    return first, first + count
