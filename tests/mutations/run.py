"""Does a test fail when the code is wrong? Puts deliberate faults into a copy of the tree and runs tests/op on each.

    python tests/mutations/run.py                 all of them: some seconds each
    python tests/mutations/run.py eps-dropped ... some of them
    python tests/mutations/run.py --list

Each fault is one line of MUTATIONS: a file, what stands there (exactly once) and what takes its place. Only the objects
that a fault touches are compiled again, without the optimiser's slow passes, and linked with the others; faults in the
row kernels go into the portable instruction set, which every machine runs. The checkout itself, and its compiled library,
stay as they are. Tests that fail before any fault are named and left out. Exits 1 if a fault survives.
"""
# ruff: noqa: E501 (a table, one fault a line)

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import hypothesis  # noqa: F401 (for the forks)
import pytest
import torch
from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).parents[2]
CXX = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-w", "-DTORCH_TARGET_VERSION=0x020a000000000000"]

# Quick to fail first. test_instruction_sets would only look at sets that have no fault.
TESTS = ["rule", "means", "shapes", "streaming", "invariance", "errors", "torch", "backends"]

ALGEBRA, ROWS, POOLING, OP = "csrc/algebra.h", "csrc/cpu/rows.h", "csrc/cpu/pooling.h", "csrc/cpu/affinity_pool.cpp"
STREAMING, AUTOGRAD = "affinity_pool/streaming.py", "affinity_pool/ops.py"
REBUILDS = {
    ALGEBRA: ["csrc/cpu/portable.cpp", "csrc/cpu/affinity_pool.cpp"],
    ROWS: ["csrc/cpu/portable.cpp"],
    POOLING: ["csrc/cpu/affinity_pool.cpp"],
    OP: ["csrc/cpu/affinity_pool.cpp"],
}


@dataclass(frozen=True)
class Mutation:
    name: str
    file: str
    old: str
    new: str
    also: tuple[tuple[str, str, str], ...] = ()
    """Further (file, old, new) of a fault that two places guard against."""

    @property
    def edits(self) -> list[tuple[str, str, str]]:
        return [(self.file, self.old, self.new), *self.also]


MUTATIONS = [
    # The rule
    Mutation("greater-for-at-least", ALGEBRA, "return dot >= threshold", "return dot > threshold"),
    Mutation("eps-dropped", ALGEBRA, "kEps2 = 1e-16", "kEps2 = 0"),
    Mutation("eps-not-squared", ALGEBRA, "kEps2 = 1e-16", "kEps2 = 1e-8"),
    Mutation("finite-check-dropped", ALGEBRA, "if (!finite || threshold > 1)", "if (threshold > 1)"),
    Mutation("minus-one-not-special", ALGEBRA, "if (threshold <= -1) return true;", ""),
    Mutation(
        "above-one-not-special",
        ALGEBRA,
        "if (!finite || threshold > 1)",
        "if (!finite)",
        also=((ROWS, "if (match.threshold > 1)", "if (false)"),),
    ),
    Mutation("root-in-float32", ALGEBRA, "threshold * sqrt(na * nb)", "threshold * sqrtf(float(na) * float(nb))"),
    # The scan
    Mutation("window-one-short", ROWS, "lag > window || lag > t + r", "lag >= window || lag > t + r"),
    Mutation("group-capped-one-short", ALGEBRA, "if (length < window) ++length", "if (length < window - 1) ++length"),
    Mutation("group-never-capped-by-start", ALGEBRA, "if (nearest_match > length)", "if (nearest_match > window)"),
    Mutation("match-at-group-start-lost", ALGEBRA, "if (nearest_match > length)", "if (nearest_match >= length)"),
    Mutation("farthest-match", ROWS, "l < L && k[r] == kNoMatch; ++l", "l < L; ++l"),
    Mutation("last-pass-dropped", ROWS, "more && lag <= window; lag += L", "more && lag < window; lag += L"),
    Mutation("passes-stop-at-last-row", ROWS, "more |= k[r] == kNoMatch", "more = k[r] == kNoMatch"),
    Mutation("mergeable-of-other-ignored", ROWS, " || !mergeable(t + r - lag)", ""),
    Mutation("mergeable-of-own-ignored", ROWS, "if (!mergeable(t + r)) continue;", ""),
    # Rows, norms, blocks
    Mutation("norms-before-block-missing", ROWS, "    norms_before(begin);\n", ""),
    Mutation("norms-before-block-one-short", ROWS, "? 0 : begin - window; t", "? 0 : begin - window + 1; t"),
    Mutation("norms-moved-by-one", ROWS, "std::memmove(norms, norms + R,", "std::memmove(norms, norms + 1,"),
    Mutation("tail-of-row-ignored", ROWS, "if (d < dim) accumulate", "if (d < 0) accumulate"),
    Mutation(
        "group-closed-by-block",
        POOLING,
        "      if (begin == 0) {\n        open_ = OpenGroup{window_};\n",
        "      open_ = OpenGroup{window_};\n      if (begin == 0) {\n",
    ),
    Mutation("group-start-kept-from-last-sequence", POOLING, "        opened_ = 0;\n", ""),
    # Means
    Mutation(
        "last-row-not-summed",
        ROWS,
        "for (int64_t t = begin; t < end; ++t)\n#pragma",
        "for (int64_t t = begin; t < end - 1; ++t)\n#pragma",
    ),
    Mutation("last-row-not-summed-in-tail", ROWS, "t < end; ++t) {\n      const Tail", "t < end - 1; ++t) {\n      const Tail"),
    Mutation("scale-off-by-one", ROWS, "static_cast<float>(end - begin)", "static_cast<float>(end - begin + 1)"),
    Mutation("singleton-through-float", ROWS, "if (end - begin == 1) {", "if (false) {"),
    Mutation("half-rounds-up", ROWS, "0x0fffu + ((magnitude >> 13) & 1u)", "0x1000u"),
    Mutation("half-subnormals-cut", ROWS, "magnitude < 0x38800000u", "magnitude < 0x38000000u"),
    Mutation("half-infinity-lost", ROWS, "| special |", "|"),
    Mutation("bfloat16-rounds-up", ROWS, "b + 0x7fffu + ((b >> 16) & 1u)", "b + 0x8000u"),
    # Layout and padding
    Mutation("values-in-padding-not-zeroed", OP, "std::memset(output.values + row", "if (false) std::memset(output.values + row"),
    Mutation("counts-in-padding-not-zeroed", OP, "    std::fill_n(sizes + row, unused, 0);\n", ""),
    Mutation("ids-in-padding-not-set", OP, "std::fill_n(ids + (left", "if (false) std::fill_n(ids + (left"),
    Mutation("left-padding-ignored", OP, "first = left_padded ? width - length : 0", "first = 0"),
    Mutation("mask-of-left-padded-shifted", OP, "flags ? flags + row : nullptr", "flags ? flags + b * width : nullptr"),
    Mutation("row-stride-taken-for-width", OP, "first * x.stride(1)", "first * dim"),
    Mutation("feature-stride-ignored", OP, "return x.stride(x.dim() - 1) == 1 ||", "return true ||"),
    Mutation("right-aligned-ids-off-by-one", POOLING, "ids[t] += shift;", "ids[t] += shift - (shift > 0);"),
    Mutation("right-aligned-counts-not-moved", POOLING, "      std::copy_backward(counts, counts + groups, counts + out_.pitch);\n", ""),
    Mutation("right-aligned-rows-not-moved", POOLING, "group.row += out_.pitch", "group.row += 0 * out_.pitch + out_.lengths[group.sequence]"),
    Mutation("ids-not-relative-to-sequence", POOLING, "row_ - b * out_.pitch", "row_"),
    # Checks
    Mutation("first-bound-unchecked", OP, "STD_TORCH_CHECK(cu[0] == 0,", "STD_TORCH_CHECK(true,"),
    Mutation("negative-length-unchecked", OP, "valid[b] >= 0 && ", ""),
    # Python
    Mutation("stream-forgets-rows", STREAMING, "held[-self.window :]", "held[-1:]"),
    Mutation("stream-keeps-count", STREAMING, "        self._count = 0\n        return values", "        return values"),
    Mutation("gradient-not-shared", AUTOGRAD, "share.index_select(0, segment_ids)", "grad_values.index_select(0, segment_ids)"),
    Mutation("gradient-into-padding", AUTOGRAD, ".masked_fill((segment_ids < 0).unsqueeze(-1), 0)", ""),
]  # fmt: skip


class Copy:
    """A copy of the tree that can be changed, built and tested."""

    def __init__(self, root: Path) -> None:
        self.root = root
        ignore = shutil.ignore_patterns("*.so", "__pycache__", ".hypothesis")
        for part in ("affinity_pool", "csrc", "tests/op"):
            shutil.copytree(ROOT / part, root / part, ignore=ignore)
        for part in ("tests/conftest.py", "pyproject.toml"):
            shutil.copy(ROOT / part, root / part)
        self.objects = {source: self.compile(source, "right") for source in sorted(self.sources())}

    def sources(self) -> list[str]:
        return [str(path.relative_to(self.root)) for path in (self.root / "csrc" / "cpu").glob("*.cpp")]

    def compile(self, source: str, variant: str) -> Path:
        target = self.root / f"{Path(source).stem}.{variant}.o"
        includes = [f"-I{path}" for path in include_paths()]
        subprocess.run([CXX, *FLAGS, *includes, "-c", source, "-o", target], cwd=self.root, check=True)
        return target

    def link(self, changed: dict[str, Path]) -> None:
        # Changed objects first: of a function that several define, the linker keeps the first.
        rest = [path for source, path in self.objects.items() if source not in changed]
        libraries = [flag for path in library_paths() for flag in (f"-L{path}", f"-Wl,-rpath,{path}")]
        target = self.root / "affinity_pool" / "_C.abi3.so"
        target.unlink(missing_ok=True)
        command = [CXX, "-shared", *changed.values(), *rest, "-o", target, *libraries, "-ltorch_cpu", "-lc10"]
        subprocess.run(command, cwd=self.root, check=True)

    def apply(self, mutation: Mutation) -> dict[Path, str]:
        """Change the files, build what they are part of, and return what stood in them."""
        before: dict[Path, str] = {}
        for file, old, new in mutation.edits:
            path = self.root / file
            text = path.read_text()
            assert text.count(old) == 1, f"{mutation.name}: {old!r} stands {text.count(old)} times in {file}"
            before[path] = text
            path.write_text(text.replace(old, new))
        sources = sorted({source for file, _, _ in mutation.edits for source in REBUILDS.get(file, [])})
        self.link({source: self.compile(source, "wrong") for source in sources})
        return before

    def failures(self, *options: str) -> list[str]:
        """Names of the tests that fail, or what else ended the run.

        The tests run in a fork of this process, which has torch and pytest loaded and the package not: half the time.
        """
        files = [str(self.root / f"tests/op/test_{name}.py") for name in TESTS]
        output = self.root / "output.txt"
        child = os.fork()
        if child == 0:
            with output.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            os.chdir(self.root)
            os.environ.update(PYTHONPATH=str(self.root), AFFINITY_POOL_CPU="portable", CI="1")
            sys.path.insert(0, str(self.root))
            status = pytest.main(["-q", "--tb=no", "-p", "no:cacheprovider", "-k", "not reference", *options, *files])
            sys.stdout.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        text = output.read_text()
        failed = [
            line.split(" - ")[0].split(" ", 1)[1]
            for line in text.splitlines()
            if line.startswith(("FAILED ", "ERROR "))
        ]
        return failed if failed or status == 0 else [f"ended with {status}: {text.strip()[-200:]}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="faults to try; all if none")
    parser.add_argument("--list", action="store_true", help="name the faults and stop")
    arguments = parser.parse_args()
    if arguments.list:
        print(*(f"{m.name:36} {m.file}" for m in MUTATIONS), sep="\n")
        return 0
    unknown = set(arguments.names) - {m.name for m in MUTATIONS}
    if unknown:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}; see --list")

    print(f"torch {torch.__version__}, {CXX}", flush=True)
    survivors = []
    with tempfile.TemporaryDirectory(prefix="affinity_pool_mutations_") as directory:
        copy = Copy(Path(directory))
        copy.link({})
        known = copy.failures()
        print("failing without a fault:", *(known or ["none"]), sep="\n  ", flush=True)
        leave_out = [f"--deselect={name}" for name in known]
        for mutation in MUTATIONS:
            if arguments.names and mutation.name not in arguments.names:
                continue
            before = copy.apply(mutation)
            caught = copy.failures("-x", *leave_out)
            for path, text in before.items():
                path.write_text(text)
            if not caught:
                survivors.append(mutation.name)
            print(f"{mutation.name:36} {caught[0] if caught else 'SURVIVED'}", flush=True)
    print(f"{len(survivors)} survived", *survivors)
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main())
