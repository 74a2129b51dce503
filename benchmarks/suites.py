"""The suites by name, and running one into a results file.

A suite refuses to report as soon as one contender's output is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from affinity_pool.provenance import load_average, provenance

from . import cpu, gpu
from .cases import WrongOutputError
from .contenders import CONTENDERS
from .measure import Options, Record
from .timing import keep_freed_memory

Suite = Callable[[Options], Iterable[Record]]

GPU_SUITES: dict[str, Suite] = {"gpu-headline": gpu.headline, "gpu": gpu.contenders, "gpu-sweep": gpu.sweep}
SUITES: dict[str, Suite] = {
    "quick": cpu.quick,
    "target": cpu.target,
    "headline": cpu.headline,
    "sweep": cpu.sweep,
    "counts": cpu.counts,
    "overhead": cpu.overhead,
    "instruction-sets": cpu.instruction_sets,
    **GPU_SUITES,
}


def run(
    suite: str = "headline",
    threads: Sequence[int] = (),
    out: Path | None = None,
    rounds: int = 200,
    *,
    seconds: float = 1.0,
    contenders: Sequence[str] = (),
    device: str = "cpu",
    echo: Callable[[str], None] = print,
) -> Record:
    """Measure a suite and return its results, written to ``out`` as JSON if given.

    Args:
        suite: one of ``SUITES``.
        threads: keep the cases with these numbers of threads. None named: all cases of the suite.
        out: the file to write. Until it is whole, the cases done so far are beside it as ``NAME.partial.json``, which
            says ``"partial": true``.
        rounds: turns of every contender; slow ones take part in fewer.
        seconds: about how long one contender may take in one case.
        contenders: keep these of ``CONTENDERS``. None named: all of the suite.
        device: where the tensors are.
        echo: takes a line of progress per case.

    Raises:
        ValueError: a suite or contender has no such name.
        WrongOutputError: a contender's output differs from the reference's; no file is left.
    """
    if suite not in SUITES:
        raise ValueError(f"suite must be one of {', '.join(SUITES)}, got {suite!r}")
    for name in contenders:
        if name not in CONTENDERS:
            raise ValueError(f"contenders must be among {', '.join(CONTENDERS)}, got {name!r}")
    options = Options(device, tuple(threads), rounds, seconds, tuple(contenders), echo)
    before = torch.get_num_threads()
    results: Record = {"suite": suite, "provenance": provenance(device)}
    results["method"] = {"rounds": rounds, "seconds": seconds, "freed_memory_kept": keep_freed_memory()}
    results["results"] = []
    partial = None if out is None else out.with_suffix(".partial.json")
    try:
        for record in SUITES[suite](options):
            results["results"].append(record)
            if partial is not None:
                replace_file(partial, {**results, "partial": True})
    except WrongOutputError:
        if partial is not None:
            partial.unlink(missing_ok=True)
        raise
    finally:
        torch.set_num_threads(before)
    results["provenance"]["load_average_after"] = load_average()
    if out is not None and partial is not None:
        replace_file(out, results)
        partial.unlink(missing_ok=True)
    return results


def replace_file(path: Path, results: Record) -> None:
    """Write ``path`` so that whoever reads it, or ends this process, finds the old file or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.stem}.partial.json")  # a name that git ignores
    fresh.write_text(json.dumps(results, indent=1) + "\n")
    fresh.replace(path)
