"""A case to measure: its shape, its data, and the check that a contender's output has to pass before it is timed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import affinity_pool
from affinity_pool.results import PooledPadded

from .contenders import Pool, Rule

THRESHOLD = 0.8
MARGIN = 0.02  # data keeps every similarity this far from the threshold, beyond the rounding of a bfloat16 cosine
REFERENCE_ROWS = 4096  # the reference takes some 50 us a row; above, the groups the data was made of are the judge
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
    """Input of a case, and the group means it must come to."""

    x: Tensor
    rule: Rule
    expected: Tensor
    longest: int
    """Rows in the largest group."""

    @property
    def retention(self) -> float:
        return self.expected.shape[0] / self.x.shape[0]

    def bytes_moved(self, contender: str, padded: bool = False) -> int:
        """Each row of x read once, each row of the result written once: what the work needs, not what is done.

        A padded result is as large as x: zeros where no group is.
        """
        written = self.x.shape[0] if padded or contender == "clone" else self.expected.shape[0]
        return (self.x.shape[0] + written) * self.x.shape[1] * self.x.element_size()


def make_data(case: Case, device: str = "cpu") -> Data:
    """Rows that repeat a random base row with noise; a new base at random places, as many as retention asks for.

    Small inputs are judged by the reference. Of large ones the groups are known all the same: :func:`check_margin`
    shows for every pair the rule may look at that it is similar if and only if both rows repeat one base row.
    """
    generator = torch.Generator(device).manual_seed(case.tokens + case.dim)
    n = case.batch * case.tokens
    starts = torch.arange(0, n + 1, case.tokens, dtype=torch.int32, device=device)
    opens = torch.zeros(n, dtype=torch.bool, device=device)
    opens[starts[:-1].long()] = True
    others = torch.randperm(n, generator=generator, device=device)
    others = others[~opens[others]]
    opens[others[: max(0, round(case.retention * n) - case.batch)]] = True
    group = opens.cumsum(0) - 1
    base = torch.randn(int(opens.sum()), case.dim, generator=generator, device=device)
    noise = torch.randn(n, case.dim, generator=generator, device=device)
    x = base[group].add_(noise, alpha=0.2).to(DTYPES[case.dtype])
    counts = tuple(opens.view(case.batch, case.tokens).sum(1).tolist())
    rule = Rule(THRESHOLD, case.window, starts if case.batch > 1 else None, counts)
    check_margin(x, group, rule)
    expected = reference_means(x, rule) if n <= REFERENCE_ROWS else group_means(x, group)
    return Data(x, rule, expected, int(group.bincount().max()))


def reference_means(x: Tensor, rule: Rule) -> Tensor:
    bounds = None if rule.cu_seqlens is None else rule.cu_seqlens.cpu()
    pooled = affinity_pool.reference.pool(x.cpu(), bounds, threshold=rule.threshold, window=rule.window)
    return pooled.values.to(x.device)


def group_means(x: Tensor, group: Tensor) -> Tensor:
    """The mean of each group's rows, in float64 and rounded to the dtype of x; ``group [N]`` counts them from 0."""
    counts = group.bincount().unsqueeze(1)
    sums = torch.zeros(counts.shape[0], x.shape[1], dtype=torch.float64, device=x.device)
    return (sums.index_add_(0, group, x.double()) / counts).to(x.dtype)


def check_margin(x: Tensor, group: Tensor, rule: Rule) -> None:
    """Refuse data on which a decision could hang on rounding, or whose groups are not ``group [N]``."""
    unit = torch.nn.functional.normalize(x.float(), dim=-1)
    for lag in range(1, min(rule.window, x.shape[0] - 1) + 1):
        above = (unit[lag:] * unit[:-lag]).sum(-1) - rule.threshold
        margin = float(torch.where(group[lag:] == group[:-lag], above, -above).min())
        if not margin >= MARGIN:
            raise ValueError(f"data must keep {MARGIN} from the threshold, got {margin:.4f} at lag {lag}")


def check_output(name: str, pool: Pool, data: Data) -> None:
    """Raise WrongOutputError unless the output is what is expected, up to rounding; for clone, unless it is x."""
    with torch.inference_mode():
        check_values(name, pool(data.x), data)


def check_padded(name: str, result: PooledPadded, data: Data) -> None:
    """The same of a padded result, which must be zero where no group is."""
    lengths = result.lengths.tolist()
    check_values(name, torch.cat([v[:n] for v, n in zip(result.values, lengths, strict=True)]), data)
    if any(bool(v[n:].any()) for v, n in zip(result.values, lengths, strict=True)):
        raise WrongOutputError(f"{name} must return zeros where no group is")


def check_values(name: str, got: Tensor, data: Data) -> None:
    expected = data.x if name == "clone" else data.expected
    if got.shape != expected.shape or got.dtype != expected.dtype:
        given, wanted = f"{list(got.shape)} {got.dtype}", f"{list(expected.shape)} {expected.dtype}"
        raise WrongOutputError(f"{name} must return {wanted}, got {given}")
    # A value may be rounded twice to its dtype, and each addition of a float32 sum in another order rounds as well.
    tolerance = 2 * torch.finfo(expected.dtype).eps + data.longest * torch.finfo(torch.float32).eps
    error = (got.float() - expected.float()).abs() / expected.float().abs().clamp(min=1)
    if not bool((error <= tolerance).all()):  # NaN fails too
        raise WrongOutputError(f"{name} is off by {float(error.max()):.2e}, allowed is {tolerance:.2e}")
