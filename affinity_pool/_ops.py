"""The namespace of the ops. The file has the name and the contents that the Kernels Hub's builder gives it.

A build for the hub has one of its own, with a namespace that no other build has, so that several can be loaded in one
process, and beside this package (docs/hub.md). What stands here is all that the rest of the package knows of that.
"""

from __future__ import annotations

import torch

ops = torch.ops.affinity_pool


def add_op_namespace_prefix(op_name: str) -> str:
    """The name by which the dispatcher knows an op."""
    return f"{ops.name}::{op_name}"
