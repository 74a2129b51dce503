"""What matrix instructions cost in precision: similarities by a tensor core's sums and by float32's, against float64.

    python -m affinity_pool.benchmarks.without_gpu.matrix_sums [--out FILE.json]

prints the table and, if told where, keeps it with its provenance.

No GPU needed: the hardware's sums are those of published models (PeerJ CS 7:e330, arXiv:2512.07004). Products are
exact; eight on an A100, sixteen on an H100, are aligned with the sum so far to the largest of them, cut 1 or 2 bits
below the 24th, added exactly, and the result is cut to a float. The order is the CUDA kernel's: four warps, two chains
each.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

DIMS, NOISES, OFFSETS, PAIRS = (256, 1024, 4096, 8192), (0.05, 0.3, 0.7), (0.0, 1.0), 512
TERMS = {"A100": (8, 25), "H100": (16, 26)}  # products of a sum, and bits that are kept
SPREAD = 8.0  # every 97th feature is so many times larger, as in hidden states


@dataclass(frozen=True)
class Errors:
    """The largest over pairs of bfloat16 rows: of |cosine - float64's|, and the relative error of a norm squared."""

    features: int
    sums: str
    cosine: float
    norm: float


def cut(values: Tensor, unit: Tensor) -> Tensor:
    return torch.trunc(values / unit) * unit


def to_float(values: Tensor) -> Tensor:
    """float64 to float32, towards zero."""
    rounded = values.float().double()
    beyond = rounded.abs() > values.abs()
    return torch.where(beyond, torch.nextafter(rounded.float(), torch.zeros(())).double(), rounded)


def by_matrix(a: Tensor, b: Tensor, together: int, bits: int) -> Tensor:
    """Dot products of rows, ``[n]``: chunks of eight features in turn to warps, their halves in turn to two chains."""
    products = (a.double() * b.double()).view(len(a), -1, 4, 2, 2, 2)  # lane, half, word of it, feature of it
    groups = products.permute(0, 1, 3, 4, 2, 5).reshape(len(a), -1, 2, 16)
    warp = torch.arange(groups.shape[1]) // 8 % 4
    total = torch.zeros(len(a))
    for w in range(4):
        chains = []
        for half in range(2):
            chain = torch.zeros(len(a), dtype=torch.float64)
            its = groups[:, warp == w, half].flatten(1)
            for terms in its.split(together, 1) if its.shape[1] else ():
                largest = torch.maximum(terms.abs().amax(1), chain.abs()).clamp(min=1e-300)
                unit = torch.exp2(torch.frexp(largest).exponent.double() - bits)
                chain = to_float(cut(chain, unit) + cut(terms, unit.unsqueeze(1)).sum(1))
            chains.append(chain.float())
        total += chains[0] + chains[1]
    return total


def one_by_one(a: Tensor, b: Tensor) -> Tensor:
    """A single chain of float32 additions."""
    total = torch.zeros(len(a))
    for x, y in zip(a.float().unbind(1), b.float().unbind(1), strict=True):
        total = (total.double() + x.double() * y.double()).float()
    return total


def measure(features: int, sums: str, dot: Callable[[Tensor, Tensor], Tensor]) -> Errors:
    generator = torch.Generator().manual_seed(features)
    cosine = norm = 0.0
    for noise in NOISES:
        for offset in OFFSETS:
            base = torch.randn(PAIRS, features, generator=generator)
            base[:, ::97] *= SPREAD
            a, b = ((base + offset + noise * torch.randn(base.shape, generator=generator)).bfloat16() for _ in range(2))
            ab, aa, bb = (dot(*pair).double() for pair in ((a, b), (a, a), (b, b)))
            x, y = a.double(), b.double()
            true = torch.cosine_similarity(x, y, dim=1)
            cosine = max(cosine, float((ab / (aa * bb).sqrt() - true).abs().max()))
            norm = max(norm, float((aa / x.square().sum(1) - 1).abs().max()))
    return Errors(features, sums, cosine, norm)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    kinds: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"float32, one by one": one_by_one}
    for name, (together, bits) in TERMS.items():
        kinds[name] = lambda a, b, together=together, bits=bits: by_matrix(a, b, together, bits)  # type: ignore[misc]
    records = [measure(features, sums, dot) for features in DIMS for sums, dot in kinds.items()]
    lines = ["| features | sums | largest error of a cosine | of a norm squared |", "| --- | --- | --- | --- |"]
    lines += [f"| {r.features} | {r.sums} | {r.cosine:.1e} | {r.norm:.1e} |" for r in records]
    print("\n".join(lines))
    if options.out is not None:
        from affinity_pool.provenance import provenance

        results = {"provenance": provenance(), "results": [asdict(record) for record in records]}
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
