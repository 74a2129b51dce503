"""A pytest plugin: the public functions run the Triton kernels, in Triton's interpreter, on CPU tensors."""

from __future__ import annotations

import warnings

import torch
from op.implementations import IMPLEMENTATIONS, Implementation

import affinity_pool
from affinity_pool import triton_kernels

library = torch.library.Library("affinity_pool", "IMPL")
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="(?s).*Overriding a previously registered kernel")
    for op in affinity_pool.ops.REFERENCE:
        library.impl(op, getattr(triton_kernels, op), "CPU")

IMPLEMENTATIONS[:] = [
    Implementation("triton", "cpu", affinity_pool, lambda: None),
]
