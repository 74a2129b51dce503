"""A fault that compute-sanitizer must find: a kernel that stores one element beyond the end of its tensor.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer python benchmarks/gpu_check/planted_fault.py

Its name says affinity_pool, as the CUDA kernel's does: a filter that lets that one through lets this one through.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def affinity_pool_planted(x: tl.tensor) -> None:
    tl.store(x + 8, 1.0)


if __name__ == "__main__":
    affinity_pool_planted[(1,)](torch.zeros(8, device="cuda"))
    torch.cuda.synchronize()
