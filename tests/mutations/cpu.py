"""Faults of the CPU kernels and of the Python around them, and what shows them: tests/op without the emulator.

Only the objects that a fault touches are compiled again, without the optimiser's slow passes, and linked with the others;
faults in the row kernels go into the portable instruction set, which every machine runs.
"""
# ruff: noqa: E501 (a table, one fault a line)

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from torch.utils.cpp_extension import include_paths, library_paths
from tree import Fault, Tree

CXX = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-w", "-DTORCH_TARGET_VERSION=0x020a000000000000"]

# Quick to fail first. test_instruction_sets would only look at sets that have no fault.
TESTS = ["rule", "pool_to", "means", "shapes", "streaming", "invariance", "errors", "torch", "backends"]

ALGEBRA, ROWS, POOLING, OP = "csrc/algebra.h", "csrc/cpu/rows.h", "csrc/cpu/pooling.h", "csrc/cpu/affinity_pool.cpp"
SELECTION = "csrc/cpu/selection.h"
TENSORS = "csrc/tensors.h"
STREAMING, AUTOGRAD = "affinity_pool/streaming.py", "affinity_pool/derivatives.py"
REBUILDS = {
    ALGEBRA: ["csrc/cpu/portable.cpp", "csrc/cpu/affinity_pool.cpp"],
    ROWS: ["csrc/cpu/portable.cpp"],
    POOLING: ["csrc/cpu/affinity_pool.cpp"],
    SELECTION: ["csrc/cpu/affinity_pool.cpp"],
    OP: ["csrc/cpu/affinity_pool.cpp"],
    TENSORS: ["csrc/cpu/affinity_pool.cpp"],
}

FAULTS = [
    # The rule
    Fault("greater-for-at-least", ALGEBRA, "return dot >= threshold", "return dot > threshold"),
    Fault("eps-dropped", ALGEBRA, "kEps2 = 1e-16", "kEps2 = 0"),
    Fault("eps-not-squared", ALGEBRA, "kEps2 = 1e-16", "kEps2 = 1e-8"),
    Fault("finite-check-dropped", ALGEBRA, "if (!are_finite(squared_norm_a, squared_norm_b) || threshold > 1)", "if (threshold > 1)"),
    Fault("minus-one-not-special", ALGEBRA, "if (threshold <= -1) return true;", ""),
    Fault(
        "above-one-not-special",
        ALGEBRA,
        "squared_norm_b) || threshold > 1)",
        "squared_norm_b))",
        also=((ROWS, "if (match.threshold > 1) return;", ""),),
    ),
    Fault("root-in-float32", ALGEBRA, "return sqrt(na * nb)", "return sqrtf(float(na) * float(nb))"),
    # The scan
    Fault("window-one-short", ROWS, "lag > window || lag > t + r", "lag >= window || lag > t + r"),
    Fault("group-capped-one-short", ALGEBRA, "if (length < window) ++length", "if (length < window - 1) ++length"),
    Fault("group-never-capped-by-start", ALGEBRA, "if (nearest_match > length)", "if (nearest_match > window)"),
    Fault("match-at-group-start-lost", ALGEBRA, "if (nearest_match > length)", "if (nearest_match >= length)"),
    Fault("farthest-match", ROWS, "l < L && k[r] == kNoMatch; ++l", "l < L; ++l"),
    Fault("last-pass-dropped", ROWS, "more && lag <= window; lag += L", "more && lag < window; lag += L"),
    Fault("passes-stop-at-last-row", ROWS, "more |= k[r] == kNoMatch", "more = k[r] == kNoMatch"),
    Fault("mergeable-of-other-ignored", ROWS, " || !similarities.mergeable(t + r - lag)", ""),
    Fault("mergeable-of-own-ignored", ROWS, "if (!similarities.mergeable(t + r)) continue;", ""),
    # Rows, norms, blocks
    Fault("norms-before-block-missing", ROWS, "    norms_before(begin);\n", ""),
    Fault("norms-before-block-one-short", ROWS, "? 0 : begin - window; t", "? 0 : begin - window + 1; t"),
    Fault("norms-moved-by-one", ROWS, "std::memmove(norms, norms + R,", "std::memmove(norms, norms + 1,"),
    Fault("tail-of-row-ignored", ROWS, "if (d < dim) accumulate", "if (d < 0) accumulate"),
    Fault(
        "group-closed-by-block",
        POOLING,
        "      if (begin == 0) {\n        open_ = OpenGroup{window};\n",
        "      open_ = OpenGroup{window};\n      if (begin == 0) {\n",
    ),
    Fault("group-start-kept-from-last-sequence", POOLING, "        opened_ = 0;\n", ""),
    # Means
    Fault(
        "last-row-not-summed",
        ROWS,
        "for (int64_t t = begin; t < end; ++t)\n#pragma",
        "for (int64_t t = begin; t < end - 1; ++t)\n#pragma",
    ),
    Fault("last-row-not-summed-in-tail", ROWS, "t < end; ++t) {\n      const Tail", "t < end - 1; ++t) {\n      const Tail"),
    Fault("scale-off-by-one", ROWS, "static_cast<float>(end - begin)", "static_cast<float>(end - begin + 1)"),
    Fault("singleton-through-float", ROWS, "if (end - begin == 1) {", "if (false) {"),
    Fault("half-rounds-up", ROWS, "0x0fffu + ((magnitude >> 13) & 1u)", "0x1000u"),
    Fault("half-subnormals-cut", ROWS, "magnitude < 0x38800000u", "magnitude < 0x38000000u"),
    Fault("half-infinity-lost", ROWS, "| special |", "|"),
    Fault("bfloat16-rounds-up", ROWS, "b + 0x7fffu + ((b >> 16) & 1u)", "b + 0x8000u"),
    # A promised number
    Fault("link-not-a-cosine", ALGEBRA, "dot / product_of_norms(squared_norm_a, squared_norm_b) + 0.0", "dot + 0.0"),
    Fault("not-finite-has-a-link", ALGEBRA, "if (!are_finite(squared_norm_a, squared_norm_b)) return -HUGE_VAL;", ""),
    Fault("share-rounded-down", ALGEBRA, "ceil(product - 1e-9)", "floor(product)"),
    Fault("share-without-slack", ALGEBRA, "ceil(product - 1e-9)", "ceil(product)"),
    Fault("share-of-one-row-is-none", ALGEBRA, "return left < 1 ? (rows < 1 ? rows : 1) :", "return left < 1 ? 0 :"),
    Fault("links-cross-text", ROWS, "similarities.mergeable(t + r) && similarities.mergeable(t + r - 1)", "similarities.mergeable(t + r)"),
    Fault("links-of-text", ROWS, "similarities.mergeable(t + r) && similarities.mergeable(t + r - 1)", "similarities.mergeable(t + r - 1)"),
    Fault("ties-to-the-latest", SELECTION, "links[a] == links[b] && a < b", "links[a] == links[b] && a > b"),
    Fault("strongest-begin", SELECTION, "links[a] < links[b] ||", "links[a] > links[b] ||"),
    Fault("one-too-many", SELECTION, "+ (groups - 1);", "+ std::min<int64_t>(groups, weakest_.size());"),
    Fault("runs-do-not-end", SELECTION, "end < length && !std::isnan(links[end])", "end < length"),
    Fault("counts-of-the-first-sequence", SELECTION, "promise_.of(sequence)", "promise_.of(0)"),
    Fault("links-of-the-first-sequence", POOLING, "links.data() + row, sequences_[b].length", "links.data(), sequences_[b].length"),
    Fault("count-too-large-unchecked", OP, " && rows_[b] <= length", ""),
    Fault("count-too-small-unchecked", OP, "rows_[b] >= std::min<int64_t>(length, 1) && ", ""),
    Fault("one-int-for-the-first-alone", OP, "rows->size() == 1 ? 0 : b", "b < static_cast<int64_t>(rows->size()) ? b : 0", also=((OP, "return std::accumulate(rows_.begin(), rows_.end(), int64_t{0});", "return rows_[0] * rows_.size();"),)),
    # Layout and padding
    Fault("values-in-padding-not-zeroed", OP, "std::memset(output.values + row", "if (false) std::memset(output.values + row"),
    Fault("counts-in-padding-not-zeroed", OP, "    std::fill_n(sizes + row, unused, 0);\n", ""),
    Fault("ids-in-padding-not-set", OP, "std::fill_n(ids + (left", "if (false) std::fill_n(ids + (left"),
    Fault("left-padding-ignored", OP, "first = left_padded ? width - length : 0", "first = 0"),
    Fault("mask-of-left-padded-shifted", OP, "flags ? flags + row : nullptr", "flags ? flags + b * width : nullptr"),
    Fault("row-stride-taken-for-width", OP, "first * x.stride(1)", "first * dim"),
    Fault("feature-stride-ignored", TENSORS, "return x.stride(x.dim() - 1) == 1 ||", "return true ||"),
    Fault("right-aligned-ids-off-by-one", POOLING, "ids[t] += shift;", "ids[t] += shift - (shift > 0);"),
    Fault("right-aligned-counts-not-moved", POOLING, "      std::copy_backward(counts, counts + groups, counts + out_.pitch);\n", ""),
    Fault("right-aligned-rows-not-moved", POOLING, "group.row += out_.pitch", "group.row += 0 * out_.pitch + out_.lengths[group.sequence]"),
    Fault("ids-not-relative-to-sequence", POOLING, "row_ - b * out_.pitch", "row_"),
    # Checks
    Fault("first-bound-unchecked", OP, "STD_TORCH_CHECK(cu[0] == 0,", "STD_TORCH_CHECK(true,"),
    Fault("negative-length-unchecked", OP, "valid[b] >= 0 && ", ""),
    # Python
    Fault("stream-forgets-rows", STREAMING, ")[-window:].clone()", ")[-1:].clone()"),
    Fault("stream-keeps-count", STREAMING, "        self._open = None\n        return closed", "        return closed"),
    Fault("gradient-not-shared", AUTOGRAD, "share(grad_values, counts).index_select(0, segment_ids)", "grad_values.index_select(0, segment_ids)"),
    Fault("gradient-into-padding", AUTOGRAD, "shares.masked_fill(padding, 0)", "shares"),
]  # fmt: skip


class CpuTree(Tree):
    """Has a compiled library of its own."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, keep_libraries=False)
        sources = [str(path.relative_to(root)) for path in (root / "csrc" / "cpu").glob("*.cpp")]
        self.objects = {source: self.compile(source, "right") for source in sorted(sources)}

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

    def failing_without_fault(self) -> list[str]:
        self.link({})
        return self.failing()

    def caught_by(self, fault: Fault, *options: str) -> str | None:
        sources = sorted({source for file, _, _ in fault.edits for source in REBUILDS.get(file, [])})
        self.link({source: self.compile(source, "wrong") for source in sources})
        return next(iter(self.failing("-x", *options)), None)

    def failing(self, *options: str) -> list[str]:
        tests = [f"tests/op/test_{name}.py" for name in TESTS]
        environment = {"AFFINITY_POOL_CPU": "portable"}
        return self.failing_tests(tests, environment, "-k", "not reference and not emulator", *options)
