"""A case to measure: its shape, its data, and the check that a contender's output has to pass before it is timed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import affinity_pool

from .contenders import Pool, Rule

THRESHOLD = 0.8
MARGIN = 0.02  # data keeps every similarity this far from the threshold, beyond the rounding of a bfloat16 cosine
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class WrongOutputError(RuntimeError):
    """A contender did not compute what the reference computes: its time would mean nothing."""


@dataclass(frozen=True)
class Case:
    """One row of a results file: ``batch`` sequences of ``tokens`` rows of ``dim`` features."""

    tokens: int
    dim: int = 4096
    dtype: str = "float32"
    window: int = 3
    retention: float = 0.4
    batch: int = 1
    threads: int = 1
    cache: str = "warm"

    def __str__(self) -> str:
        return (
            f"{self.batch} x [{self.tokens}, {self.dim}] {self.dtype}, window {self.window}, "
            f"retention {self.retention}, {self.threads} thread(s), {self.cache}"
        )


@dataclass(frozen=True)
class Data:
    """Input of a case, and what the reference makes of it."""

    x: Tensor
    rule: Rule
    expected: Tensor
    longest: int
    """Rows in the largest group."""

    @property
    def retention(self) -> float:
        return self.expected.shape[0] / self.x.shape[0]

    def bytes_moved(self, contender: str) -> int:
        """Each row of x read once, each row of the result written once: what the work needs, not what is done."""
        written = self.x.shape[0] if contender == "clone" else self.expected.shape[0]
        return (self.x.shape[0] + written) * self.x.shape[1] * self.x.element_size()


def make_data(case: Case, device: str = "cpu") -> Data:
    """Rows that repeat a random base row with noise; a new base at random places, as many as retention asks for."""
    generator = torch.Generator().manual_seed(case.tokens + case.dim)
    n = case.batch * case.tokens
    starts = torch.arange(0, n + 1, case.tokens, dtype=torch.int32)
    opens = torch.zeros(n, dtype=torch.bool)
    opens[starts[:-1].long()] = True
    others = torch.randperm(n, generator=generator)
    others = others[~opens[others]]
    opens[others[: max(0, round(case.retention * n) - case.batch)]] = True
    base = torch.randn(int(opens.sum()), case.dim, generator=generator)
    noise = torch.randn(n, case.dim, generator=generator)
    x = base[opens.cumsum(0) - 1].add_(noise, alpha=0.2).to(DTYPES[case.dtype]).to(device)
    rule = Rule(THRESHOLD, case.window, starts.to(device) if case.batch > 1 else None)
    check_margin(x, rule)
    expected = affinity_pool.reference.pool(
        x.cpu(), None if rule.cu_seqlens is None else starts, threshold=rule.threshold, window=rule.window
    )
    return Data(x, rule, expected.values.to(device), int(expected.counts.max()))


def check_margin(x: Tensor, rule: Rule) -> None:
    """Refuse data on which a decision could hang on rounding."""
    unit = torch.nn.functional.normalize(x.float(), dim=-1)
    for lag in range(1, min(rule.window, x.shape[0] - 1) + 1):
        margin = float(((unit[lag:] * unit[:-lag]).sum(-1) - rule.threshold).abs().min())
        if margin < MARGIN:
            raise ValueError(f"data must keep {MARGIN} from the threshold, got {margin:.4f} at lag {lag}")


def check_output(name: str, pool: Pool, data: Data) -> None:
    """Raise WrongOutputError unless the output is the reference's, up to rounding; for clone, unless it is x."""
    with torch.inference_mode():
        got = pool(data.x)
    expected = data.x if name == "clone" else data.expected
    if got.shape != expected.shape or got.dtype != expected.dtype:
        given, wanted = f"{list(got.shape)} {got.dtype}", f"{list(expected.shape)} {expected.dtype}"
        raise WrongOutputError(f"{name} must return {wanted}, got {given}")
    # A value may be rounded twice to its dtype, and each addition of a float32 sum in another order rounds as well.
    tolerance = 2 * torch.finfo(expected.dtype).eps + data.longest * torch.finfo(torch.float32).eps
    error = (got.float() - expected.float()).abs() / expected.float().abs().clamp(min=1)
    if not bool((error <= tolerance).all()):  # NaN fails too
        raise WrongOutputError(f"{name} is off by {float(error.max()):.2e}, allowed is {tolerance:.2e}")
