"""``affinity-pool env``"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from .application import console

PACKAGES = ("accelerate", "datasets", "huggingface_hub", "kernels", "peft", "rich", "safetensors", "typer", "vllm")
"""That an error may come from, beside those that results depend on."""
VARIABLES = ("AFFINITY_POOL_", "CUDA_", "HIP_", "OMP_", "PYTORCH_", "TORCH_", "TRITON_", "VLLM_")
"""How the names begin of those that are told."""
SECRETS = ("KEY", "TOKEN", "SECRET", "PASSWORD")  # VLLM_API_KEY, for one


def env(
    plain: Annotated[
        bool, typer.Option("--plain", help="Lines of text that no terminal breaks, to paste into an issue.")
    ] = False,
) -> None:
    """What can run here: the op's backends, the machine and the versions, as needed in a bug report."""
    from .. import backends
    from ..devices import accelerator
    from ..provenance import provenance

    device = accelerator()
    about = facts(provenance(device), device)
    if plain:
        width = max(map(len, about))
        lines = [str(backend) for backend in backends()] + [f"{name:<{width}} {value}" for name, value in about.items()]
        sys.stdout.write("\n".join(lines) + "\n")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for header in ("backend", "available", "devices", "detail"):
        table.add_column(header)
    for backend in backends():
        available = Text("yes", "green") if backend.available else Text("no", "yellow")
        table.add_row(backend.name, available, backend.devices, backend.detail)
    console.print(table)
    console.print()
    grid = Table.grid(padding=(0, 2))
    for row in about.items():
        grid.add_row(*row)
    console.print(grid)


def facts(about: Mapping[str, Any], device: str) -> dict[str, str]:
    """Of the machine and what is installed, in the order in which they are read."""
    import torch

    from ..provenance import REPOSITORY, cpu, versions

    found = {"device": about["device"]}
    if device != "cpu":
        found["processor"] = cpu()
    found |= {name: about[name] for name in ("cores", "threads", "system")}
    found["libc"] = " ".join(platform.libc_ver())
    found["commit"] = about["commit"]
    found["installed in"] = str(REPOSITORY)
    found |= about["versions"]
    found["CUDA of torch"] = torch.version.cuda
    if torch.version.hip is not None:
        found["ROCm of torch"] = torch.version.hip
    more = versions(PACKAGES)
    found |= {name: more[name] for name in PACKAGES}
    told = sorted(name for name in os.environ if name.startswith(VARIABLES) and not any(s in name for s in SECRETS))
    found |= {name: os.environ[name] for name in told}
    absent = {"commit": "none, not a checkout", "CUDA of torch": "none"}
    return {name: absent.get(name, "not installed") if value is None else str(value) for name, value in found.items()}
