"""Bad arguments are refused in words: the argument, what was given, what is allowed."""
# ruff: noqa: E501 (tables, one bad call a line)

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from affinity_pool import AffinityPooler, pool, pool_padded, pool_padded_to, pool_to, reference

from .implementations import IMPLEMENTATIONS, Implementation

X, PADDED = torch.ones(6, 4), torch.ones(2, 3, 4)
MASK = torch.ones(6, dtype=torch.bool)
NESTED = torch.nested.nested_tensor([X, X[:2]], layout=torch.strided)
OPS = torch.ops.affinity_pool


def ints(*values: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor(values, dtype=dtype)


# What every implementation's pool refuses: (id, arguments, keywords, exception, words)
# fmt: off
POOL = [
    ("x is a list", ([[1.0]],), {}, TypeError, r"^x must be a torch.Tensor of shape \[N, D\], got list \[\[1.0\]\]"),
    ("x is None", (None,), {}, TypeError, r"x must be a torch.Tensor of shape \[N, D\], got NoneType"),
    ("x is float64", (X.double(),), {}, TypeError, r"x must be float32, float16 or bfloat16, got torch.float64"),
    ("x is an integer", (X.int(),), {}, TypeError, r"x must be float32, float16 or bfloat16, got torch.int32"),
    ("x is complex", (X.to(torch.complex64),), {}, TypeError, r"x must be float32, .* got torch.complex64"),
    ("x is sparse", (X.to_sparse(),), {}, TypeError, r"x must be a dense tensor, got layout torch.sparse_coo"),
    ("x is nested", (NESTED,), {}, TypeError, r"x must be a dense tensor, got a nested one: pool takes its rows side by side"),
    ("x is jagged", (torch.nested.nested_tensor([X, X], layout=torch.jagged),), {}, TypeError, r"x must be a dense tensor, got layout torch.jagged"),
    ("x is an array", (X.numpy(),), {}, TypeError, r"x must be a torch.Tensor of shape \[N, D\], got ndarray array\(\[\[1., 1., 1., 1.\], \["),
    ("x holds no data", (X.to("meta"),), {}, ValueError, r"x must hold data, got a meta tensor; only pool_padded can"),
    ("x is a vector", (X[0],), {}, ValueError, r"x must have shape \[N, D\], got \[4\]"),
    ("x is a batch", (PADDED,), {}, ValueError, r"x must have shape \[N, D\], got \[2, 3, 4\]"),
    ("x has no features", (X[:, :0],), {}, ValueError, r"x must have at least one feature .*, got shape \[6, 0\]"),
    ("cu_seqlens is a list", (X, [0, 6]), {}, TypeError, r"cu_seqlens must be an int32 tensor or None, got list"),
    ("cu_seqlens is int64", (X, ints(0, 6, dtype=torch.int64)), {}, TypeError, r"cu_seqlens must be int32, got torch.int64"),
    ("cu_seqlens is nested", (X, NESTED), {}, TypeError, r"cu_seqlens must be a dense tensor, got a nested one"),
    ("cu_seqlens is sparse", (X, ints(0, 6).to_sparse()), {}, TypeError, r"cu_seqlens must be a dense tensor, got layout torch.sparse_coo"),
    ("cu_seqlens is an array", (X, ints(0, 6).numpy()), {}, TypeError, r"cu_seqlens must be an int32 tensor or None, got ndarray array"),
    ("cu_seqlens is a number", (X, ints(6)[0]), {}, ValueError, r"cu_seqlens must have one dimension, got shape \[\]"),
    ("cu_seqlens is a matrix", (X, ints(0, 6)[None]), {}, ValueError, r"cu_seqlens must have one dimension, got shape \[1, 2\]"),
    ("cu_seqlens is empty", (X, ints()), {}, ValueError, r"cu_seqlens must have B \+ 1 entries .* at least one, got none"),
    ("cu_seqlens are endless", (X, ints(0).expand(2**31)), {}, ValueError, r"cu_seqlens must have fewer than 2\^31 entries, got 2147483648"),
    ("cu_seqlens of no sequence", (X, ints(0)), {}, ValueError, r"cu_seqlens must end at the 6 rows of x, got 0"),
    ("cu_seqlens elsewhere", (X, ints(0, 6).to("meta")), {}, ValueError, r"cu_seqlens must be on the device of x, cpu, got meta"),
    ("mergeable is a list", (X,), {"mergeable": [True]}, TypeError, r"mergeable must be a bool tensor or None, got list \[True\]"),
    ("mergeable is nested", (X,), {"mergeable": NESTED}, TypeError, r"mergeable must be a dense tensor, got a nested one"),
    ("mergeable is sparse", (X,), {"mergeable": MASK.to_sparse()}, TypeError, r"mergeable must be a dense tensor, got layout torch.sparse_coo"),
    ("mergeable is an array", (X,), {"mergeable": MASK.numpy()}, TypeError, r"mergeable must be a bool tensor or None, got ndarray"),
    ("mergeable is uint8", (X,), {"mergeable": MASK.byte()}, TypeError, r"mergeable must be a bool tensor, got torch.uint8"),
    ("mergeable is short", (X,), {"mergeable": MASK[1:]}, ValueError, r"mergeable must have shape \[6\], one flag a row of x, got \[5\]"),
    ("mergeable is wide", (X,), {"mergeable": MASK[:, None]}, ValueError, r"mergeable must have shape \[6\].*, got \[6, 1\]"),
    ("mergeable elsewhere", (X,), {"mergeable": MASK.to("meta")}, ValueError, r"mergeable must be on the device of x, cpu, got meta"),
    ("threshold is None", (X,), {"threshold": None}, TypeError, r"threshold must be a float \(a cosine similarity\), got NoneType"),
    ("threshold is text", (X,), {"threshold": "0.8"}, TypeError, r"threshold must be a float .*, got str '0.8'"),
    ("threshold is a flag", (X,), {"threshold": True}, TypeError, r"threshold must be a float .*, got bool True"),
    ("threshold is a tensor", (X,), {"threshold": X[0, 0]}, TypeError, r"threshold must be a float .*, got Tensor"),
    ("threshold is endless", (X,), {"threshold": 10**400}, ValueError, r"threshold must be a cosine similarity, got int 1000"),
    ("threshold is deep", (X,), {"threshold": -(2**63) - 1}, ValueError, r"threshold must be a cosine similarity, got int -9223372036854775809"),
    ("threshold is NaN", (X,), {"threshold": math.nan}, ValueError, r"threshold must be a number, got NaN; use .* above 1"),
    ("window is a float", (X,), {"window": 3.0}, TypeError, r"window must be an int in 1..32 \(tokens\), got float 3.0"),
    ("window is a flag", (X,), {"window": True}, TypeError, r"window must be an int in 1..32 \(tokens\), got bool True"),
    ("window is None", (X,), {"window": None}, TypeError, r"window must be an int in 1..32 \(tokens\), got NoneType"),
    ("window is 0", (X,), {"window": 0}, ValueError, r"window must be in 1..32 \(tokens\), got 0"),
    ("window is negative", (X,), {"window": -1}, ValueError, r"window must be in 1..32 \(tokens\), got -1"),
    ("window is 33", (X,), {"window": 33}, ValueError, r"window must be in 1..32 \(tokens\), got 33"),
]
# fmt: on

# fmt: off
POOL_PADDED = [
    ("x is packed", (X,), {}, ValueError, r"x must have shape \[B, T, D\], got \[6, 4\]"),
    ("x is None", (None,), {}, TypeError, r"x must be a torch.Tensor of shape \[B, T, D\], got NoneType"),
    ("x is float64", (PADDED.double(),), {}, TypeError, r"x must be float32, float16 or bfloat16, got torch.float64"),
    ("x has no features", (PADDED[..., :0],), {}, ValueError, r"x must have at least one feature .* \[2, 3, 0\]"),
    ("lengths is a list", (PADDED, [3, 3]), {}, TypeError, r"lengths must be an int32 tensor or None, got list \[3, 3\]"),
    ("lengths is int64", (PADDED, ints(3, 3, dtype=torch.int64)), {}, TypeError, r"lengths must be int32, got torch.int64"),
    ("lengths is nested", (PADDED, NESTED), {}, TypeError, r"lengths must be a dense tensor, got a nested one"),
    ("lengths is sparse", (PADDED, ints(3, 3).to_sparse()), {}, TypeError, r"lengths must be a dense tensor, got layout torch.sparse_coo"),
    ("x is nested", (NESTED,), {}, TypeError, r"x must be a dense tensor, got a nested one"),
    ("lengths is a matrix", (PADDED, ints(3, 3)[None]), {}, ValueError, r"lengths must have one dimension, got shape \[1, 2\]"),
    ("lengths is short", (PADDED, ints(3)), {}, ValueError, r"lengths must have one entry for each of the 2 sequences of x, got 1"),
    ("lengths elsewhere", (PADDED, ints(3, 3).to("meta")), {}, ValueError, r"lengths must be on the device of x, cpu, got meta"),
    ("mergeable is flat", (PADDED,), {"mergeable": MASK}, ValueError, r"mergeable must have shape \[2, 3\].*, got \[6\]"),
    ("threshold is NaN", (PADDED,), {"threshold": math.nan}, ValueError, r"threshold must be a number, got NaN"),
    ("window is 33", (PADDED,), {"window": 33}, ValueError, r"window must be in 1..32 \(tokens\), got 33"),
]
# fmt: on

# fmt: off
POOL_TO = [
    ("x is a batch", (PADDED, 0.5), {}, ValueError, r"x must have shape \[N, D\], got \[2, 3, 4\]"),
    ("x holds no data", (X.to("meta"), 0.5), {}, ValueError, r"x must hold data, got a meta tensor; only pool_padded_to or counts as ints can"),
    ("cu_seqlens is int64", (X, 0.5, ints(0, 6, dtype=torch.int64)), {}, TypeError, r"cu_seqlens must be int32, got torch.int64"),
    ("cu_seqlens of no sequence", (X, 0.5, ints(0)), {}, ValueError, r"cu_seqlens must end at the 6 rows of x, got 0"),
    ("mergeable is short", (X, 0.5), {"mergeable": MASK[1:]}, ValueError, r"mergeable must have shape \[6\], one flag a row of x, got \[5\]"),
    ("keep is None", (X, None), {}, TypeError, r"^keep must be a float \(a share\), an int or ints \(rows of each sequence\), or an int32 tensor, got NoneType None"),
    ("keep is text", (X, "0.5"), {}, TypeError, r"keep must be a float .*, got str '0.5'"),
    ("keep is a flag", (X, True), {}, TypeError, r"keep must be a float .*, got bool True"),
    ("keep is an array", (X, MASK.int().numpy()), {}, TypeError, r"keep must be a float .*, got ndarray array"),
    ("share of nothing", (X, 0.0), {}, ValueError, r"keep must be a share of rows in \(0, 1\], got 0.0"),
    ("share below 0", (X, -0.5), {}, ValueError, r"keep must be a share of rows in \(0, 1\], got -0.5"),
    ("share above 1", (X, 1.001), {}, ValueError, r"keep must be a share of rows in \(0, 1\], got 1.001"),
    ("share is NaN", (X, math.nan), {}, ValueError, r"keep must be a share of rows in \(0, 1\], got nan"),
    ("share is endless", (X, math.inf), {}, ValueError, r"keep must be a share of rows in \(0, 1\], got inf"),
    ("no row", (X, 0), {}, ValueError, r"keep must be in 1..6 for the 6 rows of sequence 0, got 0"),
    ("fewer than no row", (X, -1), {}, ValueError, r"keep must be in 1..6 for the 6 rows of sequence 0, got -1"),
    ("more rows than there are", (X, 7), {}, ValueError, r"keep must be in 1..6 for the 6 rows of sequence 0, got 7"),
    ("rows of nothing", (X[:0], 1), {}, ValueError, r"keep must be 0 for the 0 rows of sequence 0, got 1"),
    ("a number for nobody", (X, [3, 3]), {}, ValueError, r"keep must have one int for each of the 1 sequences of x, got 2"),
    ("no number", (X, []), {}, ValueError, r"keep must have one int for each of the 1 sequences of x, got 0"),
    ("shares of each", (X, [0.5]), {}, TypeError, r"keep must hold ints \(rows of each sequence\), got float 0.5 at sequence 0"),
    ("flags of each", (X, [3, True], ints(0, 3, 6)), {}, TypeError, r"keep must hold ints .*, got bool True at sequence 1"),
    ("more than there are at all", (X, [3, 7], ints(0, 3, 6)), {}, ValueError, r"keep must be in 0..6 \(rows\), got 7 at sequence 1"),
    ("counts are int64", (X, ints(3, dtype=torch.int64)), {}, TypeError, r"keep must be int32, got torch.int64"),
    ("counts are one number", (X, ints(3)[0]), {}, ValueError, r"keep must have one dimension, got shape \[\]"),
    ("counts are too many", (X, ints(3, 3)), {}, ValueError, r"keep must have one entry for each of the 1 sequences of x, got 2"),
    ("counts elsewhere", (X, ints(3).to("meta")), {}, ValueError, r"keep must be on the device of x, cpu, got meta"),
    ("counts are floats", (X, torch.ones(1)), {}, TypeError, r"keep must be int32, got torch.float32"),
    ("counts and text", (X, 3), {"mergeable": MASK}, ValueError, r"keep must be a float \(a share of each run\) if mergeable is given, got counts"),
    ("counts in a tensor and text", (X, ints(3)), {"mergeable": MASK}, ValueError, r"keep must be a float .* if mergeable is given, got counts"),
]
POOL_PADDED_TO = [
    ("x is packed", (X, 0.5), {}, ValueError, r"x must have shape \[B, T, D\], got \[6, 4\]"),
    ("lengths is short", (PADDED, 0.5, ints(3)), {}, ValueError, r"lengths must have one entry for each of the 2 sequences of x, got 1"),
    ("mergeable is flat", (PADDED, 0.5), {"mergeable": MASK}, ValueError, r"mergeable must have shape \[2, 3\].*, got \[6\]"),
    ("share above 1", (PADDED, 2.0), {}, ValueError, r"keep must be a share of rows in \(0, 1\], got 2.0"),
    ("no row", (PADDED, 0), {}, ValueError, r"keep must be in 1..3 for the 3 rows of sequence 0, got 0"),
    ("more than the width", (PADDED, [1, 4], ints(1, 3)), {}, ValueError, r"keep must be in 0..3 \(rows\), got 4 at sequence 1"),
    ("counts are too few", (PADDED, [3]), {}, ValueError, r"keep must have one int for each of the 2 sequences of x, got 1"),
    ("counts are int64", (PADDED, ints(3, 3, dtype=torch.int64)), {}, TypeError, r"keep must be int32, got torch.int64"),
]
# fmt: on

# Values that no shape shows: the CPU kernel says the same as the reference, in the dispatcher's RuntimeError.
# fmt: off
CONTENT = [
    ("cu_seqlens start late", "pool", (X, ints(1, 6)), r"cu_seqlens must start at 0, got 1"),
    ("cu_seqlens start below", "pool", (X, ints(-1, 6)), r"cu_seqlens must start at 0, got -1"),
    ("cu_seqlens decrease", "pool", (X, ints(0, 5, 3, 6)), r"cu_seqlens must not decrease, got 5 then 3 at sequence 1"),
    ("cu_seqlens overrun", "pool", (X, ints(0, 7)), r"cu_seqlens must end at the 6 rows of x, got 7"),
    ("cu_seqlens overrun inside", "pool", (X, ints(0, 9, 6)), r"cu_seqlens must not decrease, got 9 then 6 at sequence 1"),
    ("cu_seqlens end early", "pool", (X, ints(0, 5)), r"cu_seqlens must end at the 6 rows of x, got 5"),
    ("lengths negative", "pool_padded", (PADDED, ints(3, -1)), r"lengths must be in 0..3 \(the padded width of x\), got -1 at sequence 1"),
    ("lengths too long", "pool_padded", (PADDED, ints(4, 3)), r"lengths must be in 0..3 \(the padded width of x\), got 4 at sequence 0"),
    ("no row of some", "pool_to", (X, [3, 0], ints(0, 3, 6)), r"keep must be in 1..3 for the 3 rows of sequence 1, got 0"),
    ("more rows than of one", "pool_to", (X, [2, 3], ints(0, 4, 6)), r"keep must be in 1..2 for the 2 rows of sequence 1, got 3"),
    ("more rows than of each", "pool_to", (X, 3, ints(0, 4, 6)), r"keep must be in 1..2 for the 2 rows of sequence 1, got 3"),
    ("rows of an empty sequence", "pool_to", (X, [2, 1, 3], ints(0, 3, 3, 6)), r"keep must be 0 for the 0 rows of sequence 1, got 1"),
    ("a row of each, one is empty", "pool_to", (X, 1, ints(0, 0, 6)), r"keep must be 0 for the 0 rows of sequence 0, got 1"),
    ("tensor of no row", "pool_to", (X, ints(0)), r"keep must be in 1..6 for the 6 rows of sequence 0, got 0"),
    ("tensor below 0", "pool_to", (X, ints(2, -2), ints(0, 3, 6)), r"keep must be in 1..3 for the 3 rows of sequence 1, got -2"),
    ("tensor of too many", "pool_to", (X, ints(7)), r"keep must be in 1..6 for the 6 rows of sequence 0, got 7"),
    ("cu_seqlens overrun, a share", "pool_to", (X, 0.5, ints(0, 7)), r"cu_seqlens must end at the 6 rows of x, got 7"),
    ("cu_seqlens decrease, counts", "pool_to", (X, [1, 1, 1], ints(0, 5, 3, 6)), r"cu_seqlens must not decrease, got 5 then 3"),
    ("lengths too long, a share", "pool_padded_to", (PADDED, 0.5, ints(4, 3)), r"lengths must be in 0..3 .*, got 4 at sequence 0"),
    ("more than a length", "pool_padded_to", (PADDED, [1, 3], ints(1, 2)), r"keep must be in 1..2 for the 2 rows of sequence 1, got 3"),
    ("more than a length, all", "pool_padded_to", (PADDED, 2, ints(1, 2)), r"keep must be in 1..1 for the 1 rows of sequence 0, got 2"),
    ("tensor and lengths", "pool_padded_to", (PADDED, ints(0, 0), ints(0, 2)), r"keep must be in 1..2 for the 2 rows of sequence 1, got 0"),
]
# fmt: on

# The op called without the Python function in front.
# fmt: off
DIRECT = [
    ("pool: x is float64", OPS.pool, (X.double(), None, None, 0.8, 3), r"x must be float32, float16 or bfloat16"),
    ("pool: x is a batch", OPS.pool, (PADDED, None, None, 0.8, 3), r"x must have shape \[N, D\], got 3 dimensions"),
    ("pool: x has no features", OPS.pool, (X[:, :0], None, None, 0.8, 3), r"x must have at least one feature"),
    ("pool: threshold is NaN", OPS.pool, (X, None, None, math.nan, 3), r"threshold must be a number, got NaN"),
    ("pool: window is 0", OPS.pool, (X, None, None, 0.8, 0), r"window must be in 1..32 \(tokens\), got 0"),
    ("pool: window is 33", OPS.pool, (X, None, None, 0.8, 33), r"window must be in 1..32 \(tokens\), got 33"),
    ("pool: window is 2^32 + 1", OPS.pool, (X, None, None, 0.8, 2**32 + 1), r"window must be in 1..32 .*, got 4294967297"),
    ("pool: cu_seqlens is int64", OPS.pool, (X, ints(0, 6).long(), None, 0.8, 3), r"cu_seqlens must be int32"),
    ("pool: cu_seqlens is a matrix", OPS.pool, (X, ints(0, 6)[None], None, 0.8, 3), r"cu_seqlens must have one dimension, got 2"),
    ("pool: cu_seqlens is empty", OPS.pool, (X, ints(), None, 0.8, 3), r"cu_seqlens must have B \+ 1 entries .* at least one, got none"),
    ("pool: cu_seqlens are endless", OPS.pool, (X, ints(0).expand(2**31), None, 0.8, 3), r"cu_seqlens must have fewer than 2\^31 entries, got 2147483648"),
    ("pool: cu_seqlens of no sequence", OPS.pool, (X, ints(0), None, 0.8, 3), r"cu_seqlens must end at the 6 rows of x, got 0"),
    ("pool: mergeable is uint8", OPS.pool, (X, None, MASK.byte(), 0.8, 3), r"mergeable must be a bool tensor"),
    ("pool: mergeable is short", OPS.pool, (X, None, MASK[1:], 0.8, 3), r"mergeable must have the shape of x without its last"),
    ("pool_padded: x is packed", OPS.pool_padded, (X, None, None, 0.8, 3), r"x must have shape \[B, T, D\], got 2 dimensions"),
    ("pool_padded: lengths is int64", OPS.pool_padded, (PADDED, ints(3, 3).long(), None, 0.8, 3), r"lengths must be int32"),
    ("pool_padded: lengths is short", OPS.pool_padded, (PADDED, ints(3), None, 0.8, 3), r"lengths must have one entry for each of the 2 sequences"),
    ("pool_padded: mergeable is flat", OPS.pool_padded, (PADDED, None, MASK, 0.8, 3), r"mergeable must have the shape of x"),
    ("pool_to: x is a batch", OPS.pool_to, (PADDED, None, None, 0.5), r"x must have shape \[N, D\], got 3 dimensions"),
    ("pool_to: share is 0", OPS.pool_to, (X, None, None, 0.0), r"share must be in \(0, 1\], got 0"),
    ("pool_to: share is NaN", OPS.pool_to, (X, None, None, math.nan), r"share must be in \(0, 1\], got nan"),
    ("pool_to: share above 1", OPS.pool_to, (X, None, None, 1.5), r"share must be in \(0, 1\], got 1.5"),
    ("pool_to: two kinds of rows", OPS.pool_to, (X, None, None, 1.0, [3], ints(3)), r"rows and rows_tensor must not both be given"),
    ("pool_to: rows and text", OPS.pool_to, (X, None, MASK, 1.0, [3]), r"mergeable must be None if rows are given, not a share"),
    ("pool_to: rows_tensor and text", OPS.pool_to, (X, None, MASK, 1.0, None, ints(3)), r"mergeable must be None if rows are given"),
    ("pool_to: rows of others", OPS.pool_to, (X, None, None, 1.0, [1, 2]), r"rows must be one int, or one for each of the 1 sequences of x, got 2"),
    ("pool_to: rows below 0", OPS.pool_to, (X, None, None, 1.0, [-1]), r"rows must be in 1..6, got -1"),
    ("pool_to: no row", OPS.pool_to, (X, None, None, 1.0, [0]), r"rows must be in 1..6, got 0"),
    ("pool_to: more rows than there are", OPS.pool_to, (X, ints(0, 4, 6), None, 1.0, [2, 7]), r"rows must be in 0..6, got 7"),
    ("pool_to: rows of 2^32 + 1", OPS.pool_to, (X, None, None, 1.0, [2**32 + 1]), r"rows must be in 1..6, got 4294967297"),
    ("pool_to: rows_tensor is int64", OPS.pool_to, (X, None, None, 1.0, None, ints(3).long()), r"rows_tensor must be int32"),
    ("pool_to: rows_tensor of others", OPS.pool_to, (X, None, None, 1.0, None, ints(3, 3)), r"rows_tensor must have one entry for each of the 1"),
    ("pool_padded_to: x is packed", OPS.pool_padded_to, (X, None, None, 0.5), r"x must have shape \[B, T, D\], got 2 dimensions"),
    ("pool_padded_to: rows of others", OPS.pool_padded_to, (PADDED, None, None, 1.0, [1, 1, 1]), r"rows must be one int, or one for each of the 2"),
    ("pool_padded_to: rows beyond", OPS.pool_padded_to, (PADDED, None, None, 1.0, [4]), r"rows must be in 1..3, got 4"),
    ("pool_padded: mergeable is long", OPS.pool_padded, (PADDED, None, MASK.view(3, 2), 0.8, 3), r"mergeable must have the shape of x"),
]
# fmt: on


@pytest.mark.parametrize("function", [pool, reference.pool], ids=["cpu", "reference"])
@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "words"), [pytest.param(*row[1:], id=row[0]) for row in POOL]
)
def test_pool_says_what_is_wrong(function: Callable[..., Any], arguments, keywords, error, words):
    with pytest.raises(error, match=words):
        function(*arguments, **keywords)


@pytest.mark.parametrize("function", [pool_padded, reference.pool_padded], ids=["cpu", "reference"])
@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "words"), [pytest.param(*row[1:], id=row[0]) for row in POOL_PADDED]
)
def test_pool_padded_says_what_is_wrong(function: Callable[..., Any], arguments, keywords, error, words):
    with pytest.raises(error, match=words):
        function(*arguments, **keywords)


@pytest.mark.parametrize("function", [pool_to, reference.pool_to], ids=["cpu", "reference"])
@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "words"), [pytest.param(*row[1:], id=row[0]) for row in POOL_TO]
)
def test_pool_to_says_what_is_wrong(function: Callable[..., Any], arguments, keywords, error, words):
    with pytest.raises(error, match=words):
        function(*arguments, **keywords)


@pytest.mark.parametrize("function", [pool_padded_to, reference.pool_padded_to], ids=["cpu", "reference"])
@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "words"), [pytest.param(*row[1:], id=row[0]) for row in POOL_PADDED_TO]
)
def test_pool_padded_to_says_what_is_wrong(function: Callable[..., Any], arguments, keywords, error, words):
    with pytest.raises(error, match=words):
        function(*arguments, **keywords)


@pytest.mark.parametrize(("name", "arguments", "words"), [pytest.param(*row[1:], id=row[0]) for row in CONTENT])
def test_contents_that_make_no_sense_are_refused(implementation: Implementation, name, arguments, words):
    error = {"cpu": RuntimeError, "reference": ValueError}.get(implementation.name)
    if error is None:
        pytest.skip("a GPU clamps them: it cannot look without waiting")
    with pytest.raises(error, match=words):
        getattr(implementation, name)(*arguments)


@pytest.mark.skipif(IMPLEMENTATIONS[0].missing() is not None, reason="the CPU kernels are not built")
@pytest.mark.parametrize(("op", "arguments", "words"), [pytest.param(*row[1:], id=row[0]) for row in DIRECT])
def test_the_op_itself_says_what_is_wrong(op, arguments, words):
    with pytest.raises(RuntimeError, match=words):
        op(*arguments)


@pytest.mark.parametrize(
    ("keywords", "error", "words"),
    [
        ({"threshold": math.nan}, ValueError, "threshold must be a number, got NaN"),
        ({"threshold": "high"}, TypeError, "threshold must be a float"),
        ({"window": 0}, ValueError, r"window must be in 1..32 \(tokens\), got 0"),
        ({"window": 2.5}, TypeError, "window must be an int in 1..32"),
    ],
)
def test_a_pooler_is_refused_when_made_not_when_fed(keywords, error, words):
    with pytest.raises(error, match=words):
        AffinityPooler(**keywords)


@pytest.mark.parametrize(
    ("chunk", "error", "words"),
    [
        ([1.0], TypeError, r"must be a torch.Tensor of shape \[n, D\], got list"),
        (X[0], ValueError, r"must have shape \[n, D\], got \[4\]"),
        (X.double(), TypeError, "must be float32, float16 or bfloat16, got torch.float64"),
        (X.to("meta"), ValueError, "chunk must hold data, got a meta tensor"),
        (NESTED, TypeError, "chunk must be a dense tensor, got a nested one"),
        (X[:, :3], ValueError, "like the first one, 4 features of torch.float32 on cpu, got 3 of torch.float32 on cpu"),
        (X.half(), ValueError, r"must be like the first one, 4 features of torch.float32 .*got 4 of torch.float16"),
    ],
)
def test_a_chunk_says_what_is_wrong(chunk, error, words):
    pooler = AffinityPooler()
    pooler.step(X)
    with pytest.raises(error, match=words):
        pooler.step(chunk)


def test_a_flush_of_nothing_says_so():
    with pytest.raises(RuntimeError, match=r"flush\(\) has no open group: call step\(\) with at least one row first"):
        AffinityPooler().flush()


def test_long_values_are_not_printed_in_full():
    with pytest.raises(TypeError) as error:
        pool(list(range(10_000)))
    assert len(str(error.value)) < 200


def test_options_go_by_name():
    with pytest.raises(TypeError, match="positional"):
        pool(X, None, MASK)


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    import affinity_pool

    with pytest.raises(AttributeError, match="module 'affinity_pool' has no attribute 'pol'"):
        affinity_pool.pol  # noqa: B018
