"""Where the rows of a sequence lie, as all three kernels see it.

A call is ``sequences`` times ``rows`` rows: a padded batch is B times T, packed sequences are 1 times N (their starts
come in with the scan). Rows count from 0 in each sequence; of a padded one, ``lengths`` says how many are valid.
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
