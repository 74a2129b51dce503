"""Inputs. A sequence is spelled: one letter, one row, so that a failing example can be read.

Equal letters are similar rows (equal ones at noise 0). Capitals are audio and may merge, small letters are the same
rows as text. ``0`` is a zero row, ``?`` holds a NaN, ``^`` an Inf, ``!`` a value whose square overflows float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
INTS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
ODD = {"?": math.nan, "^": math.inf, "!": 1e30}  # 1e30 is Inf in float16
# Around every width at which a kernel may change course: lanes of 4, 8, 16, chunks of two, groups of four chunks.
DIMS = (1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 160, 257)
WINDOWS = (1, 2, 3, 4, 5, 7, 8, 11, 32)
THRESHOLDS = (-2.0, -1.0, -0.5, 0.0, 0.2, 0.5, 0.8, 0.9, 0.98, 0.9999, 1.0, 1.5)
LAYOUTS = ("contiguous", "rows apart", "features apart", "off by one", "reversed axes")


def bits(x: Tensor) -> Tensor:
    """The bits of a float tensor as integers: equal for equal NaNs, different for 0.0 and -0.0."""
    return x.contiguous().view(INTS[x.dtype]) if x.dtype in INTS else x


def same_bits(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Whether two results are equal bit for bit, in every tensor, dtype and shape."""
    return len(a) == len(b) and all(
        p.dtype == q.dtype and torch.equal(bits(p), bits(q)) for p, q in zip(a, b, strict=True)
    )


def spell(text: str, dim: int, dtype: torch.dtype = torch.float32, noise: float = 0.0, seed: int = 0) -> Tensor:
    """Rows ``[len(text), dim]`` of a spelled sequence."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    common, letters = random(dim), random(26, dim)
    scale = 1.0 if noise == 0 else torch.exp(random(len(text), 1))
    x = torch.stack(
        [torch.zeros(dim, dtype=torch.float64)]
        + [letters[ord(c.upper()) - ord("A")] + 0.5 * common if c.isalpha() else torch.zeros(dim) for c in text]
    )[1:]
    x = scale * (x + noise * random(len(text), dim) * x.abs().mean(-1, keepdim=True))
    for t, c in enumerate(text):
        if c in ODD:
            x[t] = random(dim)
            x[t, t % dim] = ODD[c]
    return x.to(dtype)


def can_merge(text: str) -> Tensor:
    """``[len(text)]`` bool: everything but small letters."""
    return torch.tensor([not c.islower() for c in text], dtype=torch.bool)


def lay_out(x: Tensor, layout: str) -> Tensor:
    """The same values at other strides, or off the alignment an allocator gives; between them NaN."""
    if layout == "rows apart":
        roomy = x.new_full((*x.shape[:-1], x.shape[-1] + 3), math.nan)
        roomy[..., : x.shape[-1]] = x
        return roomy[..., : x.shape[-1]]
    if layout == "features apart":
        roomy = x.new_full((*x.shape, 2), math.nan)
        roomy[..., 0] = x
        return roomy[..., 0]
    if layout == "off by one":
        buffer = x.new_full((x.numel() + 1,), math.nan)
        buffer[1:] = x.flatten()
        return buffer[1:].view(x.shape)
    if layout == "reversed axes":
        return x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))
    return x


@dataclass(frozen=True)
class Case:
    """A call of ``pool``: spelled sequences and how their rows are made."""

    sequences: list[str]
    dim: int
    dtype: torch.dtype
    noise: float
    seed: int
    threshold: float
    window: int
    layout: str = "contiguous"
    masked: bool = True
    x: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        x = spell("".join(self.sequences), self.dim, self.dtype, self.noise, self.seed)
        object.__setattr__(self, "x", lay_out(x, self.layout))

    @property
    def lengths(self) -> Tensor:
        return torch.tensor([len(s) for s in self.sequences], dtype=torch.int32)

    @property
    def cu_seqlens(self) -> Tensor:
        return torch.tensor([0, *self.lengths.cumsum(0)], dtype=torch.int32)

    @property
    def mergeable(self) -> Tensor | None:
        return can_merge("".join(self.sequences)) if self.masked else None

    @property
    def rule(self) -> dict[str, Any]:
        return {"threshold": self.threshold, "window": self.window}

    @property
    def options(self) -> dict[str, Any]:
        return {"mergeable": self.mergeable, **self.rule}

    def padded(self, left: bool, fill: float = math.nan) -> tuple[Tensor, Tensor, Tensor | None]:
        """``x [B, T, D]``, lengths and mergeable of the same sequences, padded with ``fill``."""
        width = max((len(s) for s in self.sequences), default=0) + 1
        x = self.x.new_full((len(self.sequences), width, self.dim), fill)
        mergeable = torch.ones(len(self.sequences), width, dtype=torch.bool)
        for b, (text, rows) in enumerate(zip(self.sequences, self.x.split(self.lengths.tolist()), strict=True)):
            valid = slice(width - len(text), width) if left else slice(0, len(text))
            x[b, valid], mergeable[b, valid] = rows, can_merge(text)
        return lay_out(x, self.layout), self.lengths, mergeable if self.masked else None


def texts(max_size: int = 24, alphabet: str = "AAABBCaab0?^!") -> st.SearchStrategy[str]:
    """Spelled sequences in which runs are common."""
    runs = st.tuples(st.sampled_from(alphabet), st.integers(1, 6)).map(lambda run: run[0] * run[1])
    return st.lists(runs, max_size=8).map(lambda pieces: "".join(pieces)[:max_size])


def cases(
    max_sequences: int = 4, max_size: int = 24, alphabet: str = "AAABBCaab0?^!", **fixed: Any
) -> st.SearchStrategy[Case]:
    """Calls of ``pool`` over every dtype, layout and kind of row; keywords pin a field of :class:`Case`."""
    free: dict[str, st.SearchStrategy[Any]] = {
        "sequences": st.lists(texts(max_size, alphabet), max_size=max_sequences),
        "dim": st.sampled_from(DIMS),
        "dtype": st.sampled_from(DTYPES),
        "noise": st.sampled_from([0.0, 0.02, 0.3, 1.0]),
        "seed": st.integers(0, 2**16),
        "threshold": st.sampled_from(THRESHOLDS) | st.floats(-1.25, 1.25),
        "window": st.sampled_from(WINDOWS) | st.integers(1, 32),
        "layout": st.sampled_from(LAYOUTS),
        "masked": st.booleans(),
    }
    given = {k: v if isinstance(v, st.SearchStrategy) else st.just(v) for k, v in fixed.items()}
    return st.builds(Case, **{**free, **given})
