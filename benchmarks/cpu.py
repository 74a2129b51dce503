"""The suites for a CPU: the op against copying its input, the paper's loop and what torch can do without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import affinity_pool

from .cases import DTYPES, THRESHOLD, Case, WrongOutputError
from .measure import Options, Record, describe, measure_all
from .timing import Call, interleave

INSTRUCTION_SETS = ("portable", "avx2", "avx512", "avx512_bf16")
ON_CPU = ("clone", "ours", "torch.compile", "vectorised", "paper's loop")


def quick(options: Options) -> Iterable[Record]:
    """For whoever changes a kernel: 750 tokens on one thread, all contenders in each dtype; windows 1, 8 and 32."""
    plan: list[tuple[Case, Sequence[str]]] = [(Case(750, dtype=dtype), ON_CPU) for dtype in DTYPES]
    for dtype in ("float32", "bfloat16"):
        plan += [(Case(750, dtype=dtype, window=window), ("clone", "ours")) for window in (1, 8, 32)]
    return measure_all(plan, options)


def target(options: Options) -> Iterable[Record]:
    """The goal: one thread, D = 4096, window 3, against clone."""
    cases = [Case(tokens, dtype=dtype) for tokens in (750, 1500) for dtype in DTYPES]
    return measure_all([(case, ("clone", "ours")) for case in cases], options)


def headline(options: Options) -> Iterable[Record]:
    """The goal's shapes on one and two threads: the two fast contenders by themselves, then all of them in turn.

    By themselves they find x in cache or, going round many inputs, do not; their output's memory, handed out again at
    once, stays there. The others write a hundred megabytes between two calls: then nothing is in cache.
    """
    plan: list[tuple[Case, Sequence[str]]] = []
    for threads in (1, 2):
        for tokens in (750, 1500):
            for dtype in DTYPES:
                warm = Case(tokens, dtype=dtype, threads=threads)
                cold = replace(warm, cache="cold")
                plan += [(warm, ("clone", "ours")), (cold, ("clone", "ours")), (cold, ON_CPU)]
    return measure_all(plan, options)


def counts(options: Options) -> Iterable[Record]:
    """To a promised count, against the threshold that leaves as many at window 1: at most 1.15 of its time."""
    cases = [
        Case(tokens, dtype=dtype, window=1, retention=retention, threads=threads)
        for threads in (1, 2)
        for tokens in (750, 1500)
        for dtype in ("float32", "bfloat16")
        for retention in (0.4, 0.8)
    ]
    return measure_all([(case, ("clone", "ours", "ours to a count", "torch to a count")) for case in cases], options)


SWEEP_BASE = Case(1500)
SWEEPS: dict[str, Sequence[Any]] = {
    "tokens": (64, 256, 750, 1500, 4096, 16384),
    "dim": (64, 256, 1024, 2048, 4096, 8192),
    "window": (1, 3, 8, 32),
    "retention": (0.1, 0.2, 0.4, 0.7, 1.0),
    "batch": (1, 4, 16),
}


def sweep(options: Options) -> Iterable[Record]:
    """One parameter at a time, from 1500 tokens of 4096, window 3, retention 0.4."""
    bases = [replace(SWEEP_BASE, dtype=dtype) for dtype in ("float32", "bfloat16")]
    cases = [replace(base, **{name: v}) for name, values in SWEEPS.items() for base in bases for v in values]
    return measure_all([(case, ("clone", "ours", "vectorised")) for case in dict.fromkeys(cases)], options)


def overhead(options: Options) -> Iterable[Record]:
    """What a call costs beside its work: a [1, 64] tensor, against torch.add."""
    torch.set_num_threads(1)
    x = torch.randn(1, 64, device=options.device)
    learning = x.clone().requires_grad_()
    op, padded = torch.ops.affinity_pool.pool.default, torch.ops.affinity_pool.pool_padded.default
    batch = x.unsqueeze(0)
    calls = {
        "torch.add": Call(lambda x: torch.add(x, x)),
        "torch.add, autograd recording": Call(lambda x: torch.add(learning, learning), grad=True),
        "torch.clone": Call(torch.clone),
        "torch.ops.affinity_pool.pool": Call(lambda x: op(x, None, None, THRESHOLD, 3)),
        "torch.ops.affinity_pool.pool, autograd on": Call(lambda x: op(x, None, None, THRESHOLD, 3), grad=True),
        "torch.ops.affinity_pool.pool, autograd recording": Call(
            lambda x: op(learning, None, None, THRESHOLD, 3), grad=True
        ),
        "torch.ops.affinity_pool.pool_padded": Call(lambda x: padded(batch, None, None, THRESHOLD, 3)),
        "affinity_pool.pool": Call(affinity_pool.pool),
        "affinity_pool.pool_padded": Call(lambda x: affinity_pool.pool_padded(batch)),
        "affinity_pool.reference.pool": Call(affinity_pool.reference.pool),
    }
    for name, call in calls.items():  # a lone row is a group of its own, copied
        if "pool" in name and not torch.equal(call.function(x)[0].flatten(), x.flatten()):
            raise WrongOutputError(f"{name} must return the one row of x")
    samples = interleave(calls, [x], rounds=options.rounds, seconds=options.seconds)
    for name, taken in samples.items():
        options.echo(f"{name}: {taken.per_call()['p50']:.2f} us")
        yield {"call": name, **describe(taken, None), "against_add": taken.against(samples["torch.add"])}


def instruction_sets(options: Options) -> Iterable[Record]:
    """The goal once per instruction set that this processor has, each in a process of its own."""
    for name in INSTRUCTION_SETS:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "target.json"
            command = [sys.executable, "-m", __package__, "target", "--out", str(out), "--device", options.device]
            command += ["--rounds", str(options.rounds), "--seconds", str(options.seconds)]
            subprocess.run(command, check=True, env={**os.environ, "AFFINITY_POOL_CPU": name}, stdout=sys.stderr)
            results = json.loads(out.read_text())
        if not results["provenance"]["backends"]["cpu"].endswith(f" {name}"):
            options.echo(f"{name}: not on this processor")
            continue
        for record in results["results"]:
            yield {"instruction_set": name, **record}
