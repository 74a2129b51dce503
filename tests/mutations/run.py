"""Does a test fail when the code is wrong? Puts deliberate faults into a copy of the tree and runs the tests on each.

    python tests/mutations/run.py                      all of them
    python tests/mutations/run.py 'cuda/*' cpu/eps-dropped   some of them
    python tests/mutations/run.py --list

cpu.py and cuda.py list the faults, each a file, what stands there (exactly once) and what takes its place. Tests that
fail before any fault are named and left out. Prints what caught each fault, as a table; exits 1 if one survives.
"""

from __future__ import annotations

import argparse
import fnmatch
import platform
import sys
import tempfile
from pathlib import Path

import torch
from cpu import CXX, CpuTree
from cpu import FAULTS as CPU_FAULTS
from cuda import FAULTS as CUDA_FAULTS
from cuda import CudaTree
from tree import Fault

GROUPS = {"cpu": (CpuTree, CPU_FAULTS), "cuda": (CudaTree, CUDA_FAULTS)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["*"], help="faults to try, * and ? allowed; all if none")
    parser.add_argument("--list", action="store_true", help="name the faults and stop")
    arguments = parser.parse_args()
    every = [f"{group}/{fault.name}" for group, (_, faults) in GROUPS.items() for fault in faults]
    unknown = [name for name in arguments.names if not fnmatch.filter(every, name)]
    if unknown:
        parser.error(f"no such fault: {', '.join(unknown)}; see --list")

    survivors = []
    for group, (tree_type, faults) in GROUPS.items():
        names = {fault: f"{group}/{fault.name}" for fault in faults}
        chosen = [fault for fault in faults if any(fnmatch.fnmatch(names[fault], name) for name in arguments.names)]
        if not chosen:
            continue
        if arguments.list:
            print(*(f"{names[fault]:44} {fault.file}" for fault in chosen), sep="\n")
        else:
            survivors += [names[fault] for fault in try_faults(group, tree_type, chosen)]
    if not arguments.list:
        print(f"\n{len(survivors)} survived", *survivors)
    return bool(survivors)


def try_faults(group: str, tree_type: type[CpuTree] | type[CudaTree], faults: list[Fault]) -> list[Fault]:
    """The faults that nothing catches."""
    survivors = []
    with tempfile.TemporaryDirectory(prefix="affinity_pool_mutations_") as directory:
        tree = tree_type(Path(directory))
        known = tree.failing_without_fault()
        print(f"\n{group}: torch {torch.__version__}, {CXX}, {platform.machine()}")
        print("failing without a fault:", *(known or ["none"]), sep="\n  ")
        print(f"\n| {'fault':44} | caught by |\n| {'-' * 44} | --------- |", flush=True)
        leave_out = [f"--deselect={name}" for name in known]
        for fault in faults:
            with tree.with_fault(fault):
                caught = tree.caught_by(fault, *leave_out)
            if caught is None:
                survivors.append(fault)
            print(f"| {f'{group}/{fault.name}':44} | {caught or 'SURVIVED'} |", flush=True)
    return survivors


if __name__ == "__main__":
    sys.exit(main())
