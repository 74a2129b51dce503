"""Faults of the CUDA kernel, and what shows them: its source runs on the CPU (tests/emulator).

``tests``: tests/op and tests/emulator on the emulator, for all that is seen in results, deadlocks included.
``asan``: random calls under the address sanitizer, for reads and writes outside memory that change no result.
``tsan``: random calls under the thread sanitizer, for orders that the emulator's one thread cannot show.
"""
# ruff: noqa: E501 (a table, one fault a line)

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from pathlib import Path

from tree import Fault, Tree, ended_by, limit_seconds

# Quick to fail first.
OP_TESTS = ("rule", "means", "shapes", "invariance", "errors")
TESTS = [*(f"tests/op/test_{name}.py" for name in OP_TESTS), "tests/emulator/test_kernel.py"]
FUZZ = {"asan": [["2000", "5000", "12"], ["300", "0", "2000"]], "tsan": [["40", "0", "150"]]}

ALGEBRA, PORT = "csrc/algebra.h", "tests/emulator/emulator.h"
PARAMS, ROWS, SCAN = "csrc/cuda/params.h", "csrc/cuda/rows.cuh", "csrc/cuda/scan.cuh"
MEANS, POOLING = "csrc/cuda/means.cuh", "csrc/cuda/pooling.cuh"

FAULTS = [
    # The rule
    Fault("greater-for-at-least", ALGEBRA, "return dot >= threshold", "return dot > threshold"),
    Fault("group-capped-one-short", ALGEBRA, "if (length < window) ++length", "if (length < window - 1) ++length"),
    Fault("window-one-short", POOLING, "distance <= p.window", "distance < p.window"),
    Fault("row-matches-itself", POOLING, "distance > 0 && ", ""),
    Fault("farthest-of-a-pass", POOLING, "__ffs(static_cast<int>(found)) - 1", "31 - __clz(static_cast<int>(found))"),
    Fault("later-pass-overrides", POOLING, "if (k == kNoMatch && found != 0)", "if (found != 0)"),
    Fault("last-pass-dropped", POOLING, "lag + kLags <= p.window", "lag + kLags < p.window"),
    Fault("passes-stop-at-first-row", POOLING, "more = lane < count &&", "more = lane == 0 &&"),
    Fault("mask-of-tile-ignored", POOLING, "row < count && may_merge(p, tile, tile.begin + row) ? dot", "row < count ? dot"),
    Fault("mask-of-halo-ignored", POOLING, "r >= rows.from && may_merge(p, tile, tile.begin + r) ?", "r >= rows.from ?"),
    Fault("mask-of-own-row-ignored", POOLING, "match(dot, norm[row], ", "match(dot, norm[row] < never ? norm[row] : norm[row - distance], "),
    Fault("mask-of-other-row-ignored", POOLING, ", norm[row - distance]);", ", norm[row - distance] < never ? norm[row - distance] : norm[row]);"),
    Fault("mask-not-of-the-sequence", POOLING, "p.mergeable[tile.first_row + row]", "p.mergeable[row]"),
    # Rows, norms, dot products
    Fault("halo-one-row-short", POOLING, "(tile.begin < p.window ? tile.begin : p.window)", "(tile.begin < p.window ? tile.begin : p.window - 1)"),
    Fault("halo-norms-missing", POOLING, "row + kTileRows > rows.from", "row > rows.from"),
    Fault("halo-norms-shifted", POOLING, "dots<1, true>(rows, row, 0,", "dots<1, true>(rows, row - 1, 0,"),
    Fault("lagged-rows-shifted", ROWS, "rows.widen(row - lag - l, c,", "rows.widen(row - lag - l + 1, c,"),
    Fault("warps-after-the-second-not-summed", ROWS, "w < static_cast<int>(blockDim.x) / 32", "w < 2"),
    Fault("tail-of-row-ignored", ROWS, "if (c * F::kElements + i < dim)\n          word", "if ((c + 1) * F::kElements <= dim)\n          word"),
    Fault("tail-of-row-written-whole", ROWS, "if (c * F::kElements + i < dim)\n          p[i]", "p[i]", check="asan"),
    Fault("row-stride-taken-for-aligned", PARAMS, " && whole(p.row_stride * element_bytes)", ""),
    Fault("copies-not-awaited", ROWS, "    if constexpr (kAligned) copies_wait();\n", ""),
    Fault("kept-row-misplaced", ROWS, "? *place(r, c) :", "? *place(r > kept_from ? r - 1 : r, c) :"),
    Fault("row-before-kept-taken-for-kept", ROWS, "return r >= kept_from ?", "return r >= kept_from - 1 ?"),
    Fault("kept-rows-of-unscanned-tile", POOLING, "tile.scans ? kTileRows - p.kept_rows : kTileRows", "kTileRows - p.kept_rows"),
    Fault("rows-before-the-sequence-kept", ROWS, "int r = kept_from > from ? kept_from : from;", "int r = kept_from;", check="asan"),
    Fault("rows-before-the-window-read", ROWS, "if (r < from || r >= end)", "if (r >= end)", check="asan"),
    Fault("rows-after-the-tile-read", ROWS, "if (r < from || r >= end)", "if (r < from)", check="asan"),
    Fault("window-reaches-before-the-sequence", POOLING, "-(tile.begin < p.window ? tile.begin : p.window)", "-p.window", check="asan"),
    Fault("sums-read-before-barrier", ROWS, "sum_over_lanes<kSums>(sum, lane);\n  __syncthreads();", "sum_over_lanes<kSums>(sum, lane);"),
    Fault("barrier-between-norms-dropped", POOLING, "? squared : never;\n    __syncthreads();", "? squared : never;", check="tsan"),
    Fault("norms-read-before-sync", POOLING, "      __syncwarp();\n", ""),
    # Slots and tags
    Fault("slot-from-block-index", POOLING, "int slot = __shfl_sync(kAllLanes, static_cast<int>(static_cast<uint32_t>(drawn)), 0);", "int slot = static_cast<int>(blockIdx.x);"),
    Fault("counter-not-reset", POOLING, "if (static_cast<uint32_t>(drawn) == gridDim.x - 1)", "if (false)"),
    Fault("tag-not-advanced", POOLING, "static_cast<uint32_t>(drawn >> 32) + 1;", "static_cast<uint32_t>(drawn >> 32);"),
    Fault("first-tag-zero", POOLING, "static_cast<uint32_t>(drawn >> 32), 0) + 1;", "static_cast<uint32_t>(drawn >> 32), 0);"),
    Fault("stale-word-accepted", SCAN, "return v >> 32 == tag;", "return v != 0;"),
    Fault("stale-flag-accepted", POOLING, "while (load_acquire(&p.flags[from]) != tile.tag)", "while (load_acquire(&p.flags[from]) == 0)"),
    Fault("flag-without-tag", POOLING, "store_release(&p.flags[tile.slot], tile.tag)", "store_release(&p.flags[tile.slot], 1)"),
    Fault("one-slot-short", PARAMS, "rows / kTileRows + batch :", "rows / kTileRows + batch - 1 :"),
    Fault("find-sequence-off-by-one", POOLING, "/ kTileRows + b <= slot", "/ kTileRows + b < slot"),
    Fault("find-sequence-step-too-small", POOLING, "31 - __clz(static_cast<int>(ballot))) * step", "31 - __clz(static_cast<int>(ballot)))"),
    Fault("first-bound-not-clamped", POOLING, "first = p.bounds == nullptr ? 0 : clamped(p.bounds[tile.sequence], 0, p.rows)", "first = p.bounds == nullptr ? 0 : p.bounds[tile.sequence]", check="asan"),
    Fault("last-bound-not-clamped", POOLING, "clamped(p.bounds[tile.sequence + 1], first, p.rows)", "p.bounds[tile.sequence + 1]", check="asan"),
    Fault("length-not-clamped", POOLING, "p.rows : clamped(p.bounds[tile.sequence], 0, p.rows);\n    tile.sequence_slot", "p.rows : p.bounds[tile.sequence];\n    tile.sequence_slot", check="asan"),
    # The scan
    Fault("half-a-tile-checked", SCAN, "&& published(&tile->nearest_match[1], tag, k.word[1])", "&& (published(&tile->nearest_match[1], tag, k.word[1]) || true)"),
    Fault("half-a-prefix-checked", SCAN, "&& published(&tile->open_rows, tag, prefix.open_rows)", "&& (published(&tile->open_rows, tag, prefix.open_rows) || true)"),
    Fault("half-the-matches-gathered", POOLING, "    k |= __shfl_xor_sync(kAllLanes, k, 2);\n", ""),
    Fault("prefix-published-before-look-back", POOLING, "  const int first_slot = p.layout", "  if (tid == 0) publish(&status.opened, tile.tag, 0), publish(&status.open_rows, tile.tag, count);\n  const int first_slot = p.layout"),
    Fault("prefix-without-own-groups", POOLING, "before.opened + __popc(opens));", "before.opened);"),
    Fault("open-rows-off-by-one", POOLING, "count + __clz(static_cast<int>(opens)) - 31", "count + __clz(static_cast<int>(opens)) - 32"),
    Fault("open-rows-of-the-tile-alone", POOLING, "opens == 0 ? before.open_rows + count", "opens == 0 ? count"),
    Fault("nearest-tile-not-watched", SCAN, "watched = slot - threads + tid;", "watched = slot - threads + tid - 1;"),
    Fault("first-tile-of-sequence-ignored", POOLING, "kPacked ? 0 : tile.sequence_slot;", "kPacked ? 0 : tile.sequence_slot + 1;"),
    Fault("look-back-into-another-sequence", POOLING, "const int first_slot = p.layout == Layout::kPacked ? 0 : tile.sequence_slot;", "const int first_slot = 0;"),
    Fault("farthest-anchor-of-a-warp", SCAN, "warp * 32 + 31 - __clz(static_cast<int>(in_warp))", "warp * 32 + __ffs(static_cast<int>(in_warp)) - 1"),
    Fault("farthest-warp-with-an-anchor", SCAN, "anchor = shared.anchor[w] > anchor ?", "anchor = anchor < 0 ?"),
    Fault("tiles-before-anchor-counted", SCAN, "if (tid <= anchor) k = {{0, 0}};", "if (tid == anchor) k = {{0, 0}};"),
    Fault("anchor-counted-twice", SCAN, "if (tid <= anchor) k", "if (tid < anchor) k", check="asan"),
    Fault("empty-places-extend-the-group", SCAN, "    if (k[r] == 0) continue;\n", ""),
    Fault("state-one-short", SCAN, "OpenGroup group{window, state + 1};", "OpenGroup group{window, state};"),
    Fault("states-one-short", SCAN, "while (states < window)", "while (states < window - 1)"),
    Fault("entry-state-capped-one-short", SCAN, "rows < static_cast<uint32_t>(window) ? rows - 1 : static_cast<uint32_t>(window - 1)", "rows < static_cast<uint32_t>(window) ? rows - 1 : static_cast<uint32_t>(window > 1 ? window - 2 : 0)"),
    Fault("last-opening-not-kept", SCAN, "next.last() > 0 ? next.bits : bits", "last() > 0 ? bits : next.bits"),
    Fault("openings-of-the-first-forgotten", SCAN, "(opened() + next.opened())", "next.opened()"),
    Fault("composed-in-the-wrong-order", SCAN, "all = all.then({__shfl_sync(kAllLanes, passage.bits, all.state())});", "all = Passage{__shfl_sync(kAllLanes, passage.bits, all.state())}.then(all);"),
    Fault("entry-state-taken-for-exit-state", SCAN, "lane - state + apart + passage.state()", "lane + apart"),
    Fault("last-level-of-composition-dropped", SCAN, "apart < 32; apart *= 2", "apart < 16; apart *= 2"),
    Fault("first-warp-not-composed", SCAN, "for (int w = 0; w < threads / 32; ++w) whole", "for (int w = 1; w < threads / 32; ++w) whole", check="asan"),
    Fault("rows-since-last-opening-off-by-one", SCAN, "end - (whole.last() - 1)", "end - whole.last()"),
    Fault("open-rows-of-anchor-forgotten", SCAN, "whole.last() > 0 ? since : prefix.open_rows + since", "since"),
    Fault("anchor-read-before-barrier", SCAN, ": -1;\n  __syncthreads();", ": -1;"),
    Fault("passages-read-before-barrier", SCAN, "shared.passage[warp][lane] = all;\n  __syncthreads();", "shared.passage[warp][lane] = all;"),
    # Means
    Fault("sums-of-the-tile-before", MEANS, "(start + kTileRows - 1) / kTileRows;", "start / kTileRows;"),
    Fault("segment-taken-to-end-one-row-late", POOLING, "((2u << segment_end) - 1)", "((1u << segment_end) - 1)"),
    Fault("block-joined-of-seven", MEANS, "q < kFan - 1", "q < kFan - 2"),
    Fault("larger-block-keeps-the-smaller", MEANS, "i += kFan - 1) {\n        set_zero<kElements>(blocks);", "i += kFan - 1) {"),
    Fault("largest-block-not-found", MEANS, "done + size * kFan <= before", "done + size * kFan < before"),
    Fault("last-earlier-sum-not-added", MEANS, "carries && i < carried.earlier;", "carries && i < carried.earlier - 1;"),
    Fault("head-forgotten", MEANS, "for (int r = -carried.head;; ++r)", "for (int r = 0;; ++r)"),
    Fault("segments-of-the-group-before-counted", MEANS, "      full = in_segment = 0;", "      in_segment = 0;"),
    Fault("next-group-takes-earlier-sums", MEANS, "      carries = false;\n", ""),
    Fault("singleton-through-float", MEANS, "if (count > 1) {", "if (count > 0) {"),
    Fault("scale-off-by-one", MEANS, "static_cast<float>(count);", "static_cast<float>(count + 1);"),
    Fault("group-outside-values-written", MEANS, "if (count > 0 && group < groups)", "if (count > 0)", check="asan"),
    Fault("group-outside-counts-written", POOLING, "if (group < groups) p.counts", "p.counts", check="asan"),
    Fault("flags-not-awaited", POOLING, "while (load_acquire(&p.flags[from]) != tile.tag) pause();", "load_acquire(&p.flags[from]);"),
    Fault("flags-of-earlier-sums-not-awaited", POOLING, "(ends != 0 ? carried.earlier : 0)", "0"),
    Fault("flag-raised-before-sums", POOLING, "  for (int c = tid; c < rows.chunks; c += blockDim.x)\n    write_chunk", "  if (tid == 0) store_release(&p.flags[tile.slot], tile.tag);\n  for (int c = tid; c < rows.chunks; c += blockDim.x)\n    write_chunk"),
    Fault("flag-raised-before-barrier", POOLING, "  __syncthreads();\n  if (tid == 0) store_release", "  if (tid == 0) store_release"),
    Fault("plan-read-before-barrier", POOLING, "ends_segment);\n  }\n  __syncthreads();", "ends_segment);\n  }"),
    Fault("sums-read-before-all-have-waited", POOLING, "!= tile.tag) pause();\n  }\n  __syncthreads();", "!= tile.tag) pause();\n  }"),
    # Of port.h, whose PTX the emulator replaces by its own.
    Fault("release-relaxed", PORT, "__ATOMIC_RELEASE", "__ATOMIC_RELAXED", check="tsan"),
    Fault("acquire-relaxed", PORT, "__ATOMIC_ACQUIRE", "__ATOMIC_RELAXED", check="tsan"),
    Fault("words-stored-plainly", PORT, "__atomic_store_n(p, v, __ATOMIC_RELAXED)", "*p = v", check="tsan"),
    Fault("words-loaded-plainly", PORT, "return __atomic_load_n(p, __ATOMIC_RELAXED)", "return *p", check="tsan"),
    # Layout and padding
    Fault("values-in-padding-not-zeroed", POOLING, "      Chunks<F, kAligned>::store(values + row * p.dim, c, p.dim, {0, 0, 0, 0});", "      if (i < joined) Chunks<F, kAligned>::store(values + row * p.dim, c, p.dim, {0, 0, 0, 0});"),
    Fault("values-of-merged-rows-not-zeroed", POOLING, "      Chunks<F, kAligned>::store(values + row * p.dim, c, p.dim, {0, 0, 0, 0});", "      if (i >= joined) Chunks<F, kAligned>::store(values + row * p.dim, c, p.dim, {0, 0, 0, 0});"),
    Fault("counts-in-padding-not-zeroed", POOLING, "    p.counts[row] = 0;\n", ""),
    Fault("ids-in-padding-not-set", POOLING, "    if (i >= joined) p.segment_ids[row] = -1;\n", ""),
    Fault("tiles-of-padding-not-filled", POOLING, "    if (tile.averages) fill_padding<F, kAligned>(p, tile, 0, 0, rows.chunks);\n", ""),
    Fault("rows-of-left-padding-read", POOLING, "const int64_t left = p.layout == Layout::kLeftPadded ? p.rows - tile.length : 0;", "const int64_t left = 0;"),
    Fault("left-padded-groups-not-shifted", POOLING, "p.rows - static_cast<int64_t>(shared.groups) : 0", "0 : 0"),
    Fault("groups-awaited-from-own-slot", POOLING, "read_prefix(&p.tiles[final_slot],", "read_prefix(&p.tiles[tile.slot],"),
    Fault("prefix-awaited-from-own-slot", POOLING, "read_prefix(&p.tiles[tile.slot - 1],", "read_prefix(&p.tiles[tile.slot],"),
    Fault("scan-read-before-barrier", POOLING, "shared.before)) pause();\n  }\n  __syncthreads();", "shared.before)) pause();\n  }"),
    Fault("ids-off-by-one", POOLING, "__popc(opens & ((2u << tid) - 1))", "__popc(opens & ((1u << tid) - 1))"),
    Fault("counts-from-the-tile-on", POOLING, "earlier == 0 ? start :", "earlier == 0 ? tile.begin :"),
    Fault("last-groups-of-the-call-not-counted", POOLING, "clamped(static_cast<int>(before.opened) + opened, 0, p.rows)", "clamped(static_cast<int>(before.opened), 0, p.rows)"),
]  # fmt: skip


class CudaTree(Tree):
    """Builds the emulator from its own sources."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, keep_libraries=True)
        spec = importlib.util.spec_from_file_location("build_in_copy", root / "tests" / "emulator" / "build.py")
        assert spec is not None
        assert spec.loader is not None
        self.builder = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.builder)

    def failing_without_fault(self) -> list[str]:
        for sanitizer in FUZZ:
            said = self.said_by(sanitizer)
            assert said is None, said
        return self.failing()

    def caught_by(self, fault: Fault, *options: str) -> str | None:
        if fault.check in FUZZ:
            return self.said_by(fault.check)
        return next(iter(self.failing("-x", *options)), None)

    def failing(self, *options: str) -> list[str]:
        environment = {"EMULATOR_LIBRARY": str(self.builder.build("library"))}
        return self.failing_tests(TESTS, environment, "-k", "emulator and not sanitizers", *options)

    def said_by(self, sanitizer: str) -> str | None:
        """What ended the random calls, or None if they ended well."""
        program = self.builder.build(sanitizer)
        environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "UBSAN_OPTIONS": "print_summary=1"}
        for arguments in FUZZ[sanitizer]:
            fuzz = subprocess.run(
                [program, *arguments], env=environment, capture_output=True, text=True, preexec_fn=limit_seconds
            )
            if fuzz.returncode != 0:
                return f"{sanitizer}: {self.summary(fuzz)}"
        return None

    def summary(self, fuzz: subprocess.CompletedProcess[str]) -> str:
        lines = [line for line in (fuzz.stdout + fuzz.stderr).splitlines() if line.startswith(("seed ", "SUMMARY: "))]
        if lines:
            # What and where; instantiations fill lines.
            said = lines[-1].removeprefix("SUMMARY: ").replace(f"{self.root}/", "")
            return re.sub(r"<.*|\(.*", "", said)
        return ended_by(fuzz.returncode) if fuzz.returncode < 0 else fuzz.stderr.strip()[-200:]
