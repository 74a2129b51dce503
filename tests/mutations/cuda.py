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
OP_TESTS = ("rule", "pool_to", "means", "shapes", "invariance", "errors")
TESTS = [*(f"tests/op/test_{name}.py" for name in OP_TESTS), "tests/emulator/test_kernel.py"]
FUZZ = {"asan": [["2000", "5000", "12"], ["300", "0", "2000"]], "tsan": [["40", "0", "150"]]}

ALGEBRA, PORT = "csrc/algebra.h", "tests/emulator/emulator.h"
PARAMS, ROWS, DOTS = "csrc/cuda/params.h", "csrc/cuda/rows.cuh", "csrc/cuda/dots.cuh"
MATCH, SCAN = "csrc/cuda/nearest_match.cuh", "csrc/cuda/scan.cuh"
MEANS, POOLING = "csrc/cuda/means.cuh", "csrc/cuda/pooling.cuh"
LINKS, SELECT = "csrc/cuda/links.cuh", "csrc/cuda/select.cuh"

FAULTS = [
    # The rule
    Fault("greater-for-at-least", ALGEBRA, "return dot >= threshold", "return dot > threshold"),
    Fault("group-capped-one-short", ALGEBRA, "if (length < window) ++length", "if (length < window - 1) ++length"),
    Fault("window-one-short", MATCH, "distance <= window", "distance < window"),
    Fault("last-lags-of-the-window-not-asked", MATCH, "lag <= window; lag", "lag < window; lag"),
    Fault("row-matches-itself", MATCH, "distance > 0 && ", ""),
    Fault("farthest-of-four-lags", MATCH, "__ffs(static_cast<int>(found)) - 1", "31 - __clz(static_cast<int>(found))"),
    Fault("later-lags-override", MATCH, "if (k == kNone && found != 0)", "if (found != 0)"),
    Fault("last-pass-dropped", MATCH, "Dots::known_of(pass, lane) < window", "Dots::known_of(pass, lane) < window - 1"),
    Fault("passes-stop-at-first-row", MATCH, "more = lane < count &&", "more = lane == 0 &&"),
    Fault("no-match-taken-for-the-farthest", MATCH, "kNone = 63", "kNone = 32"),
    Fault("rows-that-do-not-exist-open-groups", MATCH, "return decides && tid < count ? k : 0", "return decides ? k : 0"),
    Fault("answers-of-the-row-before", MATCH, ">> (lane % kTileRows * kTogether)", ">> ((lane + kTileRows - 1) % kTileRows * kTogether)"),
    Fault("mask-of-tile-ignored", MATCH, "&& may_merge(row) ?", "&& (row >= 0 || may_merge(row)) ?"),
    Fault("mask-of-halo-ignored", MATCH, "&& may_merge(row) ?", "&& (row < 0 || may_merge(row)) ?"),
    Fault("mask-of-own-row-ignored", MATCH, ", norm[row], norm[row - distance])", ", norm[row] < HUGE_VALF ? norm[row] : norm[row - distance], norm[row - distance])"),
    Fault("mask-of-other-row-ignored", MATCH, ", norm[row - distance]);", ", norm[row - distance] < HUGE_VALF ? norm[row - distance] : norm[row]);"),
    Fault("mask-not-of-the-sequence", POOLING, "p.mergeable[tile.first_row + tile.begin + row]", "p.mergeable[tile.begin + row]"),
    Fault("mask-before-the-sequence-read", MATCH, "row >= from && row < count &&", "row < count &&", check="asan"),
    Fault("mask-after-the-tile-read", MATCH, "row >= from && row < count &&", "row >= from &&", check="asan"),
    Fault("largest-float-taken-for-finite", MATCH, "squared_norm < 3.402823466e38f", "squared_norm < HUGE_VALF"),
    # Rows
    Fault("halo-one-row-short", POOLING, "(tile.begin < p.window ? tile.begin : p.window)", "(tile.begin < p.window ? tile.begin : p.window - 1)"),
    Fault("tail-of-row-ignored", ROWS, "if (c * F::kElements + i < dim)\n          word", "if ((c + 1) * F::kElements <= dim)\n          word"),
    Fault("tail-of-row-written-whole", ROWS, "if (c * F::kElements + i < dim)\n          p[i]", "p[i]", check="asan"),
    Fault("address-taken-for-aligned", PARAMS, "whole(reinterpret_cast<uintptr_t>(p.x)) && ", ""),
    Fault("width-taken-for-aligned", PARAMS, "whole(static_cast<uint64_t>(p.dim) * element_bytes) && ", ""),
    Fault("row-stride-taken-for-aligned", PARAMS, " && whole(p.row_stride * element_bytes)", ""),
    Fault("sequence-stride-taken-for-aligned", PARAMS, " &&\n         whole(p.sequence_stride * element_bytes)", ""),
    Fault("copies-not-awaited", ROWS, "    if constexpr (kAligned) copies_wait();\n", ""),
    Fault("copies-not-awaited-by-the-warp", ROWS, "    __syncwarp();\n", ""),
    Fault("kept-row-misplaced", ROWS, "? *place(r, c) :", "? *place(r > kept_from ? r - 1 : r, c) :"),
    Fault("kept-stride-taken-for-chunks", ROWS, "to += kept_stride", "to += chunks"),
    Fault("shared-memory-without-the-gaps", POOLING, "static_cast<int64_t>(kept_rows) * kept_stride_of(chunks)", "static_cast<int64_t>(kept_rows) * chunks", check="asan"),
    Fault("row-before-kept-taken-for-kept", ROWS, "return r >= kept_from ?", "return r >= kept_from - 1 ?"),
    Fault("operand-before-kept-taken-for-kept", DOTS, "at = r >= rows.kept_from ?", "at = r >= rows.kept_from - 1 ?"),
    Fault("kept-rows-of-unscanned-tile", POOLING, "tile.scans ? kTileRows - p.kept_rows : kTileRows", "kTileRows - p.kept_rows"),
    Fault("rows-before-the-sequence-kept", ROWS, "const int begin = kept_from > from ? kept_from : from;", "const int begin = kept_from;", check="asan"),
    Fault("rows-after-the-tile-kept", ROWS, "for (int r = begin; r < end; ++r)", "for (int r = begin; r < begin + kTileRows - kept_from; ++r)", check="asan"),
    Fault("rows-before-the-window-read", ROWS, "return r < from ? from : r >= end", "return r >= end", check="asan"),
    Fault("rows-after-the-tile-read", ROWS, "return r < from ? from : r >= end ? end - 1 : r", "return r < from ? from : r", check="asan"),
    Fault("row-after-the-tile-read", ROWS, "r >= end ? end - 1 : r", "r >= end ? end : r", check="asan"),
    Fault("first-row-stood-in-for", ROWS, "return r < from ? from :", "return r < from + 1 ? from + 1 :"),
    Fault("last-row-stood-in-for", ROWS, "r >= end ? end - 1 : r", "r >= end - 1 ? end - 2 : r"),
    Fault("window-reaches-before-the-sequence", POOLING, "-(tile.begin < p.window ? tile.begin : p.window)", "-p.window", check="asan"),
    # Offsets beyond 32 bits
    Fault("packed-offset-in-32-bits", POOLING, "? (tile.first_row + tile.begin) * p.row_stride", "? static_cast<int>((tile.first_row + tile.begin) * p.row_stride)"),
    Fault("sequence-offset-in-32-bits", POOLING, "tile.sequence * p.sequence_stride +", "static_cast<int>(tile.sequence * p.sequence_stride) +"),
    Fault("padded-offset-in-32-bits", POOLING, "(left + tile.begin) * p.row_stride;", "static_cast<int>((left + tile.begin) * p.row_stride);"),
    Fault("kept-row-offset-in-32-bits", ROWS, "first + begin * stride", "first + static_cast<int>(begin * stride)"),
    Fault("operand-offset-in-32-bits", DOTS, "rows.first + r * rows.stride", "rows.first + static_cast<int>(r * rows.stride)"),
    Fault("row-offset-in-32-bits", ROWS, "load(first + r * stride, c, dim)", "load(first + static_cast<int>(r * stride), c, dim)"),
    Fault("sum-offset-in-32-bits", MEANS, "first + tile * stride +", "first + static_cast<int>(tile * stride) +"),
    Fault("sum-chunk-offset-in-32-bits", MEANS, "static_cast<int64_t>(c) * (kChunkBytes / sizeof(Element))", "static_cast<int>(c * (kChunkBytes / sizeof(Element)))"),
    # Dot products of all formats
    Fault("halo-norms-missing", MATCH, "      if (lane < Dots::kLags && met < 0 && met >= -window) note_norm(met, Dots::square(shared.sums, lane));\n", ""),
    Fault("halo-norms-shifted", MATCH, "met = Dots::first_met(pass) + lane;", "met = Dots::first_met(pass) + lane + 1;"),
    Fault("farthest-norm-missing", MATCH, "met >= -window)", "met > -window)"),
    Fault("norms-of-own-rows-from-squares", MATCH, "&& met < 0 && met >= -window", "&& met >= -window"),
    Fault("norms-of-more-rows-than-were-met", MATCH, "lane < Dots::kLags && met < 0", "met < 0"),
    Fault("norms-before-the-window-written", MATCH, "&& met < 0 && met >= -window)", "&& met < 0)"),
    Fault("own-norms-of-every-pass", MATCH, "if (pass == 0 && lane < kTileRows)", "if (lane < kTileRows)"),
    Fault("norms-read-before-sync", MATCH, "      __syncwarp();\n", ""),
    Fault("sums-read-before-barrier", MATCH, "Dots::take(rows(), pass, shared.sums);\n    __syncthreads();", "Dots::take(rows(), pass, shared.sums);"),
    Fault("warps-after-the-second-not-summed", DOTS, "w < static_cast<int>(blockDim.x) / 32", "w < 2"),
    Fault("first-warp-counted-for-all", DOTS, "total += sum[w * stride]", "total += sum[0]"),
    # Of 16-bit formats
    Fault("first-met-one-late", DOTS, "return -16 * pass - 8;", "return -16 * pass - 7;"),
    Fault("first-lags-of-later-passes-not-asked", DOTS, "pass == 0 ? 0 : 16 * pass - 8", "pass == 0 ? 0 : 16 * pass - 4"),
    Fault("last-lags-of-a-pass-not-asked", DOTS, "return 16 * pass + 15;", "return 16 * pass + 11;"),
    Fault("known-one-row-too-few-before", DOTS, "return met >= 0 && met < 16;", "return met > 0 && met < 16;"),
    Fault("known-one-row-too-many-before", DOTS, "return met >= 0 && met < 16;", "return met >= -1 && met < 16;"),
    Fault("known-one-row-too-few-behind", DOTS, "return met >= 0 && met < 16;", "return met >= 0 && met < 15;"),
    Fault("known-one-row-too-many-behind", DOTS, "return met >= 0 && met < 16;", "return met >= 0 && met < 17;", check="asan"),
    Fault("known-lags-one-too-many", DOTS, "return row - first_met(pass);", "return row - first_met(pass) + 1;"),
    Fault("known-lags-of-the-last-row", DOTS, "return row - first_met(pass);", "return kTileRows - 1 - first_met(pass) + 0 * row;"),
    Fault("first-pass-for-all", DOTS, "    if (pass == 0)\n      take<true>(rows, pass, sums);", "    if (pass < 2)\n      take<true>(rows, pass, sums);"),
    Fault("upper-row-off-by-one", DOTS, "upper_row(rows, first_met(pass) + g)", "upper_row(rows, first_met(pass) + g + 1)"),
    Fault("lower-row-off-by-one", DOTS, "lower_row(rows, first_met(pass) + 8 + g)", "lower_row(rows, first_met(pass) + 7 + g)"),
    Fault("upper-and-lower-rows-swapped", DOTS, "{{upper.x, lower.x, upper.y, lower.y}, {upper.z, lower.z, upper.w, lower.w}}", "{{lower.x, upper.x, lower.y, upper.y}, {lower.z, upper.z, lower.w, upper.w}}"),
    Fault("features-of-an-operand-swapped", DOTS, "{{upper.x, lower.x, upper.y, lower.y}, ", "{{upper.y, lower.y, upper.x, lower.x}, "),
    Fault("first-half-multiplied-twice", DOTS, "half == 0 ? own.x : own.z, half == 0 ? own.y : own.w", "own.x, own.y"),
    Fault("halves-multiplied-crosswise", DOTS, "half == 0 ? own.x : own.z, half == 0 ? own.y : own.w", "half == 0 ? own.z : own.x, half == 0 ? own.w : own.y"),
    Fault("second-half-of-dots-not-added", DOTS, "pair[i] = dots[0][i] + dots[1][i];", "pair[i] = dots[0][i];"),
    Fault("second-half-of-lower-dots-not-added", DOTS, "dots[0][2 + i] + dots[1][2 + i]", "dots[0][2 + i]"),
    Fault("lower-dots-taken-from-upper", DOTS, "dots[0][2 + i] + dots[1][2 + i]", "dots[0][i] + dots[1][i]"),
    Fault("second-half-of-squares-not-added", DOTS, "? squares[0][0] + squares[1][0] : squares[0][1] + squares[1][1]", "? squares[0][0] : squares[0][1]"),
    Fault("upper-squares-of-the-own-row", DOTS, "half == 0 ? upper.x : upper.z, half == 0 ? upper.y : upper.w", "half == 0 ? own.x : own.z, half == 0 ? own.y : own.w"),
    Fault("lower-squares-of-the-upper-row", DOTS, "half == 0 ? lower.x : lower.z, half == 0 ? lower.y : lower.w", "half == 0 ? upper.x : upper.z, half == 0 ? upper.y : upper.w"),
    Fault("lower-squares-missing", DOTS, "      if constexpr (!kFirst)\n        square[8] =", "      if constexpr (false)\n        square[8] ="),
    Fault("lower-squares-read-from-the-upper-half", DOTS, "? lower_squares[0][2] + lower_squares[1][2] : lower_squares[0][3] + lower_squares[1][3]", "? lower_squares[0][0] + lower_squares[1][0] : lower_squares[0][1] + lower_squares[1][1]"),
    Fault("diagonal-of-the-wrong-lanes", DOTS, "if (q == g / 2)", "if (q == g % 4)"),
    Fault("diagonal-one-column-off", DOTS, "square[0] = g % 2 == 0 ?", "square[0] = g % 2 == 1 ?"),
    Fault("diagonal-of-lower-rows-one-column-off", DOTS, "square[8] = g % 2 == 0 ?", "square[8] = g % 2 == 1 ?"),
    Fault("pairs-laid-out-crosswise", DOTS, "sums.pair[warp] + g * kTileRows + 2 * q", "sums.pair[warp] + 2 * q * kTileRows + g"),
    Fault("lower-pairs-one-row-off", DOTS, "kLower = 8 * kTileRows", "kLower = 7 * kTileRows"),
    Fault("whole-chunks-of-a-row-not-kept", DOTS, "rows.all_kept() ? rows.chunks / 32 * 32 : 0", "rows.chunks / 32 * 32"),
    Fault("all-but-one-kept-taken-for-all", ROWS, "return kept_from <= 0;", "return kept_from <= 1;"),
    Fault("chunks-not-whole-taken-for-whole", DOTS, "rows.chunks / 32 * 32", "(rows.chunks + 31) / 32 * 32"),
    Fault("own-row-before-the-tile", DOTS, "const int own_row = rows.existing(g);", "const int own_row = rows.existing(g - 1);"),
    Fault("second-half-of-chunks-skipped", DOTS, "chunk % 32 == 0 ? 16 : static_cast<int>(blockDim.x) - 16", "static_cast<int>(blockDim.x)"),
    Fault("next-round-half-a-step-late", DOTS, "static_cast<int>(blockDim.x) - 16", "static_cast<int>(blockDim.x)"),
    Fault("next-chunks-not-fetched", DOTS, "          if (next < whole) ahead[step] = upper_row[next + 4 * step + q];\n", ""),
    Fault("next-chunks-of-another-step", DOTS, "upper_row[next + 4 * step + q]", "upper_row[next + 4 * (kSteps - 1 - step) + q]"),
    Fault("next-chunks-fetched-before-use", DOTS, "          multiply(ahead[step], own, own);\n          if (next < whole) ahead[step] = upper_row[next + 4 * step + q];\n", "          if (next < whole) ahead[step] = upper_row[next + 4 * step + q];\n          multiply(ahead[step], own, own);\n"),
    Fault("chunks-after-the-row-fetched", DOTS, "if (next < whole) ahead", "ahead", check="asan"),
    Fault("last-step-skipped", DOTS, "step = 0; step < kSteps; ++step) {", "step = 0; step < kSteps - 1; ++step) {"),
    Fault("tail-skipped", DOTS, "for (; chunk < rows.chunks; chunk += blockDim.x) {", "for (; chunk < rows.chunks && whole == 0; chunk += blockDim.x) {", also=((DOTS, "    int chunk = warp * 32;\n", "    int chunk = warp * 32, whole = 0;\n"), (DOTS, "      const int whole = rows.all_kept()", "      whole = rows.all_kept()"))),
    Fault("tail-taken-by-every-warp", DOTS, "    for (; chunk < rows.chunks; chunk += blockDim.x) {", "    if (chunk >= rows.chunks / 32 * 32 && rows.chunks > 32) chunk = rows.chunks / 32 * 32;\n    for (; chunk < rows.chunks; chunk += blockDim.x) {"),
    Fault("warps-go-on-into-the-next-one-s-chunks", DOTS, "end = chunk + 32 < rows.chunks ? chunk + 32 : rows.chunks", "end = rows.chunks"),
    Fault("rounds-of-the-tail-not-of-all-warps", DOTS, "    for (; chunk < rows.chunks; chunk += blockDim.x) {\n      const int end", "    for (; chunk < rows.chunks; chunk += 64) {\n      const int end"),
    Fault("last-chunk-of-the-tail-missing", DOTS, "const bool exists = c < end;", "const bool exists = c < end - 1;"),
    Fault("lanes-without-a-chunk-leave", DOTS, "for (int c = chunk + q; c - q < end; c += 4)", "for (int c = chunk + q; c < end; c += 4)"),
    Fault("own-tail-not-zeroed", DOTS, "own = exists ? rows.load(own_row, c) : nothing;", "own = rows.load(own_row, exists ? c : end - 1);"),
    Fault("upper-tail-not-zeroed", DOTS, "multiply(exists ? upper_row[c] : nothing,", "multiply(upper_row[exists ? c : end - 1],"),
    Fault("lower-tail-not-zeroed", DOTS, "exists ? lower_row[c] : nothing, own", "lower_row[exists ? c : end - 1], own"),
    Fault("chunks-after-the-row-read", DOTS, "multiply(exists ? upper_row[c] : nothing,", "multiply(upper_row[c],", check="asan"),
    # Of float32
    Fault("lagged-rows-shifted", DOTS, "walk(rows, 1 - kLags - lag, c)", "walk(rows, 2 - kLags - lag, c)"),
    Fault("rows-of-the-tile-shifted", DOTS, "own_walk(rows, 0, c)", "own_walk(rows, 1, c)"),
    Fault("own-row-of-the-lag", DOTS, "multiply(own, lagged[(r + kLags - l) % kLags],", "multiply(now, lagged[(r + kLags - l) % kLags],"),
    Fault("lags-out-of-order", DOTS, "lagged[(r + kLags - l) % kLags]", "lagged[(r + l) % kLags]"),
    Fault("squares-of-the-next-lag", DOTS, "squares[kLags - 1 - l]", "squares[kLags - l]"),
    Fault("squares-of-the-lag-itself-missing", DOTS, "          if (r == 0) multiply(now, now, squares[kLags - 1]);\n", ""),
    Fault("squares-of-a-later-row", DOTS, "if (r == 0) multiply(now, now,", "if (r == 1) multiply(now, now,"),
    Fault("first-met-of-a-chain-one-late", DOTS, "return 1 - kLags * (pass + 1);", "return 2 - kLags * (pass + 1);"),
    Fault("first-lag-of-a-chain-one-late", DOTS, "return kLags * pass;", "return kLags * pass + (pass > 0);"),
    Fault("last-lag-of-a-chain-one-short", DOTS, "static int known_of(int pass, int) { return last_lag(pass); }", "static int known_of(int pass, int) { return last_lag(pass) + 1; }"),
    Fault("dots-of-the-next-lag", DOTS, "row * kLags + lag % kLags", "row * kLags + (lag + 1) % kLags"),
    Fault("first-path-in-later-passes", DOTS, "else if (pass > 0)\n      take<false, true>", "else if (pass > 1)\n      take<false, true>"),
    Fault("whole-path-for-rows-not-kept", DOTS, "const bool whole = rows.all_kept() && rows.end == kTileRows;", "const bool whole = rows.end == kTileRows;"),
    Fault("walk-goes-on-behind-the-tile", DOTS, "at = r > rows.from && r < rows.end ? next : at;", "at = r > rows.from ? next : at;", check="asan"),
    Fault("walk-sets-out-before-the-window", DOTS, "at = r > rows.from && r < rows.end ? next : at;", "at = r < rows.end ? next : at;"),
    Fault("walk-misses-the-kept-rows", DOTS, "r == rows.kept_from ? rows.place(r, c) : at + step", "at + step", check="asan"),
    Fault("walk-keeps-the-stride-of-far-rows", DOTS, "r > rows.kept_from ? rows.kept_stride : rows.stride / F::kElements", "rows.stride / F::kElements", check="asan"),
    Fault("walk-takes-elements-for-chunks", DOTS, "rows.kept_stride : rows.stride / F::kElements", "rows.kept_stride : rows.stride"),
    Fault("lag-zero-of-the-first-path", DOTS, "const int lag = kFirst ? 0 : first_lag(pass);", "const int lag = kFirst ? 1 : first_lag(pass);"),
    Fault("chunks-of-a-thread-after-the-first", DOTS, "for (int c = threadIdx.x; c < rows.chunks; c += blockDim.x) {\n      const uint4* own_at", "for (int c = threadIdx.x; c < rows.chunks; c += rows.chunks) {\n      const uint4* own_at"),
    Fault("lanes-summed-crosswise", DOTS, "keep = upper ? a[i + kOffset] : a[i], send = upper ? a[i] : a[i + kOffset]", "keep = upper ? a[i] : a[i + kOffset], send = upper ? a[i + kOffset] : a[i]"),
    Fault("sums-of-few-values-not-of-all-lanes", DOTS, "if constexpr (kOffset >= kValues) {\n#pragma unroll\n    for (int i = 0; i < kValues; ++i) a[i] +=", "if constexpr (kOffset >= kValues) {\n#pragma unroll\n    for (int i = 1; i < kValues; ++i) a[i] +="),
    # Slots and tags
    Fault("slot-from-block-index", POOLING, "int slot = __shfl_sync(kAllLanes, static_cast<int>(static_cast<uint32_t>(drawn)), 0);", "int slot = static_cast<int>(blockIdx.x);"),
    Fault("counter-not-reset", POOLING, "if (static_cast<uint32_t>(drawn) == gridDim.x - 1)", "if (false)"),
    Fault("counter-reset-one-slot-early", POOLING, "if (static_cast<uint32_t>(drawn) == gridDim.x - 1)", "if (static_cast<uint32_t>(drawn) + 2 == gridDim.x || gridDim.x == 1)"),
    Fault("tag-not-advanced", POOLING, "static_cast<uint32_t>(drawn >> 32) + 1;\n", "static_cast<uint32_t>(drawn >> 32);\n"),
    Fault("first-tag-zero", POOLING, "static_cast<uint32_t>(drawn >> 32), 0) + 1;", "static_cast<uint32_t>(drawn >> 32), 0);"),
    Fault("tags-do-not-wrap", POOLING, "launches == kTags ? 0 : launches", "launches"),
    Fault("tags-wrap-one-late", POOLING, "launches == kTags ? 0 : launches", "launches == kTags + 1 ? 0 : launches"),
    Fault("tags-wrap-to-one-that-is-in-use", POOLING, "launches == kTags ? 0 : launches", "launches == kTags ? kTags - 1 : launches"),
    Fault("tags-of-17-bits", PARAMS, "kTags = 65535", "kTags = 131071"),
    Fault("stale-word-accepted", SCAN, "return word >> kTagAt == tag;", "return word != 0;"),
    Fault("eight-bits-of-the-tag-compared", SCAN, "return word >> kTagAt == tag;", "return (word >> kTagAt & 0xff) == (tag & 0xff);"),
    Fault("twelve-bits-of-the-tag-compared", SCAN, "return word >> kTagAt == tag;", "return (word >> kTagAt & 0xfff) == (tag & 0xfff);"),
    Fault("stale-flag-accepted", POOLING, "while (load_acquire(&p.flags[from]) != tile.tag)", "while (load_acquire(&p.flags[from]) == 0)"),
    Fault("flag-without-tag", POOLING, "store_release(&p.flags[tile.slot], tile.tag)", "store_release(&p.flags[tile.slot], 1)"),
    Fault("one-slot-short", PARAMS, "rows / kTileRows + batch :", "rows / kTileRows + batch - 1 :"),
    Fault("workspace-without-flags", PARAMS, "sizeof(TileStatus) + sizeof(uint64_t) + sizeof(uint32_t)", "sizeof(TileStatus) + sizeof(uint64_t)", check="asan"),
    Fault("open-rows-laid-over-tiles", PARAMS, "reinterpret_cast<uint64_t*>(p.tiles + slots)", "reinterpret_cast<uint64_t*>(p.tiles) + slots"),
    Fault("flags-laid-over-open-rows", PARAMS, "reinterpret_cast<uint32_t*>(p.open_rows + slots)", "reinterpret_cast<uint32_t*>(p.open_rows) + slots"),
    Fault("find-sequence-off-by-one", POOLING, "/ kTileRows + b <= slot", "/ kTileRows + b < slot"),
    Fault("find-sequence-step-too-small", POOLING, "31 - __clz(static_cast<int>(ballot))) * step", "31 - __clz(static_cast<int>(ballot)))"),
    Fault("first-bound-not-clamped", POOLING, "first = p.bounds == nullptr ? 0 : clamped(p.bounds[tile.sequence], 0, p.rows)", "first = p.bounds == nullptr ? 0 : p.bounds[tile.sequence]", check="asan"),
    Fault("last-bound-not-clamped", POOLING, "clamped(p.bounds[tile.sequence + 1], first, p.rows)", "p.bounds[tile.sequence + 1]", check="asan"),
    Fault("length-not-clamped", POOLING, "p.rows : clamped(p.bounds[tile.sequence], 0, p.rows);\n    tile.sequence_slot", "p.rows : p.bounds[tile.sequence];\n    tile.sequence_slot", check="asan"),
    # The scan: what tiles tell
    Fault("half-the-matches-gathered", POOLING, "    k |= __shfl_xor_sync(kAllLanes, k, 2);\n", ""),
    Fault("matches-of-the-first-four-rows-twice", POOLING, "__shfl_sync(kAllLanes, k, TileMatches::kRowsAWord)", "__shfl_sync(kAllLanes, k, TileMatches::kRowsAWord - 1)"),
    Fault("words-of-a-tile-swapped", SCAN, "static_cast<uint64_t>(word[1]) << kWordBits | word[0]", "static_cast<uint64_t>(word[0]) << kWordBits | word[1]"),
    Fault("last-match-of-a-word-cut", SCAN, "kMask = (1u << kWordBits) - 1", "kMask = (1u << (kWordBits - 1)) - 1"),
    Fault("last-match-of-a-tile-not-published", SCAN, "static_cast<uint64_t>(word[1]) << kWordBits | word[0]", "(static_cast<uint64_t>(word[1]) << kWordBits | word[0]) & 0x7fffffffffff"),
    Fault("five-bits-a-match", SCAN, "& ((1u << kBits) - 1)", "& ((1u << (kBits - 1)) - 1)"),
    Fault("prefix-published-before-look-back", POOLING, "  const int first_slot = p.layout", "  if (tid == 0) publish(&status.opened, tile.tag, 0), publish(&p.open_rows[tile.slot], tile.tag, count);\n  const int first_slot = p.layout"),
    Fault("prefix-without-own-groups", POOLING, "before.opened + __popc(opens));", "before.opened);"),
    Fault("open-rows-off-by-one", POOLING, "count + __clz(static_cast<int>(opens)) - 31", "count + __clz(static_cast<int>(opens)) - 32"),
    Fault("open-rows-of-the-tile-alone", POOLING, "opens == 0 ? before.open_rows + count", "opens == 0 ? count"),
    Fault("open-rows-published-in-16-bits", POOLING, "publish(&p.open_rows[tile.slot], tile.tag, open_rows);", "publish(&p.open_rows[tile.slot], tile.tag, open_rows & 0xffff);"),
    Fault("open-rows-read-in-16-bits", SCAN, ": await_value(&p.open_rows[watched], tag)}", ": await_value(&p.open_rows[watched], tag) & 0xffff}"),
    Fault("groups-published-in-16-bits", POOLING, "before.opened + __popc(opens));", "(before.opened + __popc(opens)) & 0xffff);"),
    Fault("groups-read-in-16-bits", SCAN, "opened = static_cast<uint32_t>(prefix);", "opened = static_cast<uint16_t>(prefix);"),
    Fault("values-awaited-in-16-bits", SCAN, "return static_cast<uint32_t>(await_word(word, tag));", "return static_cast<uint16_t>(await_word(word, tag));"),
    Fault("open-rows-not-awaited", SCAN, ": await_value(&p.open_rows[watched], tag)}", ": static_cast<uint32_t>(load_relaxed(&p.open_rows[watched]))}"),
    Fault("open-rows-of-no-tile-awaited", SCAN, "watched < first ? 0 : await_value", "await_value"),
    # The scan: looking back
    Fault("nearest-tile-not-watched", SCAN, "watched = slot - threads + tid;", "watched = slot - threads + tid - 1;"),
    Fault("tile-itself-watched", SCAN, "watched = slot - threads + tid;", "watched = slot - threads + tid + 1;"),
    Fault("first-tile-of-sequence-ignored", POOLING, "kPacked ? 0 : tile.sequence_slot;", "kPacked ? 0 : tile.sequence_slot + 1;"),
    Fault("look-back-into-another-sequence", POOLING, "const int first_slot = p.layout == Layout::kPacked ? 0 : tile.sequence_slot;", "const int first_slot = 0;"),
    Fault("looks-share-what-was-seen", SCAN, "shared.seen[look % 2][warp] = seen;", "shared.seen[0][warp] = seen;", also=((SCAN, "anchor_of(shared.seen[look % 2], warps, reach)", "anchor_of(shared.seen[0], warps, reach)"),)),
    Fault("the-look-before-decides", SCAN, "anchor_of(shared.seen[look % 2], warps, reach)", "anchor_of(shared.seen[look == 0 ? 0 : 1 - look % 2], warps, reach)"),
    Fault("seen-read-before-barrier", SCAN, "shared.seen[look % 2][warp] = seen;\n    __syncthreads();", "shared.seen[look % 2][warp] = seen;"),
    Fault("farthest-warp-with-an-anchor", SCAN, "for (int w = warps - 1; w >= warps - reach; --w) {", "for (int w = warps - reach; w < warps; ++w) {"),
    Fault("unknown-tiles-behind-the-anchor-accepted", SCAN, "    if (behind != 0) return kNotYet;\n", ""),
    Fault("unknown-tiles-of-a-nearer-warp-accepted", SCAN, "prefixes == 0 ? unknown : unknown >> last >> 1", "prefixes == 0 ? 0 : unknown >> last >> 1"),
    Fault("unknown-tile-next-to-the-anchor-accepted", SCAN, "unknown >> last >> 1", "unknown >> last >> 1 & ~1u"),
    Fault("anchor-of-the-first-warp", SCAN, "return w * 32 + last;", "return last;"),
    Fault("warps-beyond-the-reach-look", SCAN, "if (warp >= warps - reach && !has_prefix)", "if (warp > warps - reach && !has_prefix)"),
    Fault("matches-forgotten-without-prefix", SCAN, "if (is_of(matches, tag)) k = TileMatches::unpack(matches);", "if (has_prefix) k = TileMatches::unpack(matches);"),
    Fault("stale-matches-of-a-tile-accepted", SCAN, "has_matches = has_prefix || is_of(matches, tag);", "has_matches = has_prefix || matches != 0;"),
    Fault("prefix-of-the-anchor-s-neighbour", SCAN, "if (tid == anchor) shared.prefix", "if (tid == (anchor > 0 ? anchor - 1 : anchor)) shared.prefix"),
    Fault("prefix-read-before-barrier", SCAN, "  if (anchor == threads - 1) {\n    __syncthreads();", "  if (anchor == threads - 1) {"),
    Fault("tiles-before-anchor-counted", SCAN, "if (tid <= anchor) k = {{0, 0}};", "if (tid == anchor) k = {{0, 0}};"),
    Fault("anchor-counted-twice", SCAN, "if (tid <= anchor) k", "if (tid < anchor) k", check="asan"),
    Fault("warp-of-the-anchor-not-composed", SCAN, "if (warp >= anchor / 32) {", "if (warp > anchor / 32) {"),
    Fault("empty-places-extend-the-group", SCAN, "opens ? 1 : nearest == 0 ? length : longer", "opens ? 1 : longer"),
    Fault("match-at-the-group-s-start-opens", SCAN, "const bool opens = nearest > length;", "const bool opens = nearest >= length;"),
    Fault("walked-length-capped-one-short", SCAN, "length < window ? length + 1 : window", "length + 1 < window ? length + 1 : window - (window > 1)"),
    Fault("walked-length-not-capped", SCAN, "length < window ? length + 1 : window", "length + 1"),
    Fault("opened-group-begins-empty", SCAN, "length = opens ? 1 : nearest", "length = opens ? (window > 1 ? 2 : 1) : nearest"),
    Fault("state-one-short", SCAN, "int length = state + 1, opened", "int length = state, opened"),
    Fault("last-opening-one-row-early", SCAN, "last = opens ? rows_before + r + 1 : last;", "last = opens ? rows_before + r : last;"),
    Fault("first-opening-kept", SCAN, "last = opens ? rows_before + r + 1 : last;", "last = opens && last == 0 ? rows_before + r + 1 : last;"),
    Fault("rows-of-warps-before-not-counted", SCAN, "(warp * 32 + tile) * kTileRows", "tile * kTileRows"),
    Fault("states-one-short", SCAN, "while (states < window)", "while (states < window - 1)"),
    Fault("entry-state-capped-one-short", SCAN, "rows < static_cast<uint32_t>(window) ? rows - 1 : static_cast<uint32_t>(window - 1)", "rows < static_cast<uint32_t>(window) ? rows - 1 : static_cast<uint32_t>(window > 1 ? window - 2 : 0)"),
    Fault("entry-state-not-capped", SCAN, "rows < static_cast<uint32_t>(window) ? rows - 1 : static_cast<uint32_t>(window - 1)", "rows - 1"),
    Fault("last-opening-not-kept", SCAN, "next.last() > 0 ? next.bits : bits", "last() > 0 ? bits : next.bits"),
    Fault("openings-of-the-first-forgotten", SCAN, "(opened() + next.opened())", "next.opened()"),
    Fault("farthest-anchor-of-a-warp", SCAN, "31 - __clz(static_cast<int>(prefixes));", "__ffs(static_cast<int>(prefixes)) - 1;"),
    Fault("openings-of-a-passage-in-8-bits", SCAN, "return bits / kOpened % (kLast / kOpened);", "return bits / kOpened % 256;"),
    Fault("last-opening-of-a-passage-in-10-bits", SCAN, "return static_cast<int>(bits / kLast);", "return static_cast<int>(bits / kLast % 1024);"),
    Fault("composed-in-the-wrong-order", SCAN, "all = all.then({__shfl_sync(kAllLanes, passage.bits, all.state())});", "all = Passage{__shfl_sync(kAllLanes, passage.bits, all.state())}.then(all);"),
    Fault("entry-state-taken-for-exit-state", SCAN, "lane - state + apart + passage.state()", "lane + apart"),
    Fault("last-level-of-composition-dropped", SCAN, "apart < 32; apart *= 2", "apart < 16; apart *= 2"),
    Fault("last-steps-of-a-warp-dropped", SCAN, "for (int step = 0; step < states; ++step)", "for (int step = 0; step < (states + 1) / 2; ++step)"),
    Fault("first-warp-not-composed", SCAN, "for (int w = anchor / 32; w < warps; ++w) whole", "for (int w = anchor / 32 + 1; w < warps; ++w) whole"),
    Fault("last-warp-not-composed", SCAN, "for (int w = anchor / 32; w < warps; ++w) whole", "for (int w = anchor / 32; w < warps - 1; ++w) whole"),
    Fault("warps-composed-for-one-state", SCAN, "whole.then(shared.passage[w][whole.state()])", "whole.then(shared.passage[w][0])"),
    Fault("rows-since-last-opening-off-by-one", SCAN, "end - (whole.last() - 1)", "end - whole.last()"),
    Fault("rows-since-the-anchor-off-by-a-tile", SCAN, "end - (anchor + 1) * kTileRows", "end - anchor * kTileRows"),
    Fault("open-rows-of-anchor-forgotten", SCAN, "whole.last() > 0 ? since : prefix.open_rows + since", "since"),
    Fault("groups-of-anchor-forgotten", SCAN, "return {prefix.opened + whole.opened(),", "return {whole.opened(),"),
    Fault("passages-read-before-barrier", SCAN, "shared.passage[warp][lane] = all;\n  }\n  __syncthreads();", "shared.passage[warp][lane] = all;\n  }"),
    # Means
    Fault("sums-of-the-tile-before", MEANS, "(start + kTileRows - 1) / kTileRows;", "start / kTileRows;"),
    Fault("segment-taken-to-end-one-row-late", POOLING, "? kTileRows - 1 - -begin % kTileRows :", "? kTileRows - -begin % kTileRows :"),
    Fault("segment-taken-to-end-one-row-early", POOLING, "? kTileRows - 1 - -begin % kTileRows :", "? kTileRows - 1 - (1 - begin) % kTileRows :"),
    Fault("segment-of-a-group-that-begins-with-the-tile-lost", POOLING, "segment_end = begin <= 0 ?", "segment_end = begin < 0 ?"),
    Fault("segment-that-ends-with-the-tile-lost", POOLING, ": segment_end < end) {", ": segment_end < end - 1) {"),
    Fault("segment-of-the-tile-not-planned", POOLING, "tile.slot, segment_end < end);", "tile.slot, !closed);"),
    Fault("long-group-summed-in-one", POOLING, "closed ? end - begin > kTileRows :", "closed ? end - begin > 2 * kTileRows :"),
    Fault("block-joined-of-seven", MEANS, "q < kFan - 1", "q < kFan - 2"),
    Fault("join-planned-of-seven", MEANS, "for (int i = kFan - 1; i > 0; --i)", "for (int i = kFan - 2; i > 0; --i)"),
    Fault("joined-from-the-wrong-segments", MEANS, "place(segments - 1 - i * joined)", "place(segments - i * joined)"),
    Fault("second-join-of-small-blocks", MEANS, "place(segments - 1 - i * joined)", "place(segments - 1 - i)"),
    Fault("larger-block-keeps-the-smaller", MEANS, "      for (int i = 0; i < carried.joining; i += kFan - 1) {\n        float earlier[kElements] = {};", "      float earlier[kElements] = {};\n      for (int i = 0; i < carried.joining; i += kFan - 1) {"),
    Fault("joined-block-without-its-own-segment", MEANS, "segment[e] = earlier[e] + segment[e];", "segment[e] = earlier[e];"),
    Fault("largest-block-not-found", MEANS, "done + size * kFan <= before", "done + size * kFan < before"),
    Fault("earlier-sum-of-the-segment-behind", MEANS, "place(done - 1)", "place(done)"),
    Fault("last-earlier-sum-not-added", MEANS, "i < carried.earlier; ++i) add_sum", "i < carried.earlier - 1; ++i) add_sum"),
    Fault("rest-added-before-earlier-sums", MEANS, "(total[e] + block[e] + segment[e])", "(total[e] + (block[e] + segment[e]))"),
    Fault("block-of-the-tile-not-added", MEANS, "(total[e] + block[e] + segment[e])", "(total[e] + segment[e])"),
    Fault("rest-not-added", MEANS, "(total[e] + block[e] + segment[e])", "(total[e] + block[e])"),
    Fault("ended-segment-summed-again", MEANS, "        block[e] = segment[e];\n        segment[e] = 0;", "        block[e] = segment[e];"),
    Fault("head-forgotten", MEANS, "for (int r = -carried.head; r < end; ++r)", "for (int r = 0; r < end; ++r)"),
    Fault("head-one-row-long", MEANS, "for (int r = -carried.head; r < end; ++r)", "for (int r = -carried.head - 1; r < end; ++r)"),
    Fault("half-a-chunk-handed-on", MEANS, "for (int e = 0; e < kElements; e += 4) store_wide", "for (int e = 0; e < 4; e += 4) store_wide"),
    Fault("half-a-sum-added", MEANS, "for (int e = 0; e < kElements; e += 4) {", "for (int e = 0; e < 4; e += 4) {"),
    Fault("chunks-of-sums-overlap", MEANS, "(kChunkBytes / sizeof(Element))", "4"),
    Fault("next-group-takes-earlier-sums", POOLING, "if (tid == 0) plan(", "if (tid == 0 && begin < 0) plan("),
    Fault("only-the-first-long-group-planned", POOLING, "      if (tid == 0) plan(", "      if (tid == 0 && (begin < 0 || before == 0 || tile.begin == 0)) plan("),
    Fault("terms-outside-the-slots-awaited", MEANS, "return tile < 0 ? 0 : tile >= slot ? slot - 1 : tile;", "return tile;", check="asan"),
    Fault("singleton-through-float", MEANS, "if (end - begin > 1) {", "if (end - begin > 0) {"),
    Fault("last-row-not-summed", MEANS, "for (int r = begin + 1; r < end; ++r)", "for (int r = begin + 1; r < end - 1; ++r)"),
    Fault("first-row-summed-twice", MEANS, "for (int r = begin + 1; r < end; ++r)", "for (int r = begin; r < end; ++r)"),
    Fault("negative-zero-for-a-sum-of-them", MEANS, "fmaf(sum[i][e], scale, 0.0f)", "(sum[i][e] * scale)"),
    Fault("short-scale-off-by-one", MEANS, "static_cast<float>(end - begin);", "static_cast<float>(end - begin + 1);"),
    Fault("scale-off-by-one", MEANS, "static_cast<float>(count);", "static_cast<float>(count + 1);"),
    Fault("scale-of-a-group-in-16-bits", POOLING, "values + group * p.dim, end - begin, sums", "values + group * p.dim, (end - begin) & 0xffff, sums"),
    Fault("both-chunks-from-one-place", MEANS, "rows.template load<kKept>(r, c + i * static_cast<int>(blockDim.x))", "rows.template load<kKept>(r, c)"),
    Fault("both-chunks-to-one-place", MEANS, "store(value, c + i * static_cast<int>(blockDim.x), rows.dim, chunk[i])", "store(value, c, rows.dim, chunk[i])"),
    Fault("chunk-after-the-row-averaged", MEANS, "c + threads < rows.chunks; c += 2 * threads", "c + threads <= rows.chunks; c += 2 * threads", check="asan"),
    Fault("odd-chunk-forgotten", MEANS, "if (c < rows.chunks) write_chunks<1", "if (c + threads < rows.chunks) write_chunks<1"),
    Fault("rows-before-kept-averaged-as-kept", MEANS, "if (begin >= rows.kept_from)", "if (begin >= rows.kept_from - 1)"),
    Fault("group-without-rows-written", POOLING, "const bool exists = begin < end && ", "const bool exists = "),
    Fault("group-outside-values-written", POOLING, "const bool exists = begin < end && (!closed || has_room(group));", "const bool exists = begin < end;", check="asan"),
    Fault("group-outside-counts-written", POOLING, "if (has_room(group)) p.counts", "p.counts", check="asan"),
    Fault("groups-of-padded-sequences-not-bounded", POOLING, "group < first_value + p.value_rows;", "group < p.value_rows;"),
    Fault("open-rows-before-the-sequence", POOLING, "clamped(static_cast<int>(open_rows), 0, tile.begin)", "static_cast<int>(open_rows)", check="asan"),
    Fault("open-group-of-the-sequence-before", POOLING, "const int before = tile.begin == 0 ? 0 :", "const int before =", check="asan"),
    Fault("last-group-of-a-sequence-goes-on", POOLING, "(tile.end == tile.length ? 1u << count : 0u)", "(tile.end == tile.length && count < kTileRows ? 1u << count : 0u)"),
    Fault("groups-end-one-early-in-values", POOLING, "to_come &= to_come - 1, ++group", "to_come &= to_come - 1"),
    # Flags
    Fault("flags-not-awaited", POOLING, "while (load_acquire(&p.flags[from]) != tile.tag) pause(20);", "load_acquire(&p.flags[from]);"),
    Fault("flags-of-earlier-sums-not-awaited", POOLING, "(closed ? carried.earlier : 0)", "0"),
    Fault("flags-of-joined-sums-not-awaited", POOLING, "for (int i = tid; i < terms; i += blockDim.x)", "for (int i = carried.joining + tid; i < terms; i += blockDim.x)"),
    Fault("flags-after-the-first-not-awaited", POOLING, "for (int i = tid; i < terms; i += blockDim.x)", "for (int i = tid; i < (terms < 1 ? terms : 1); i += blockDim.x)"),
    Fault("flags-awaited-in-vain", POOLING, "(closed ? carried.earlier : 0)", "carried.earlier + 1"),
    Fault("flag-raised-before-sums", POOLING, "  const bool hands_on =\n", "  if (tid == 0) store_release(&p.flags[tile.slot], tile.tag);\n  const bool hands_on =\n"),
    Fault("flag-raised-before-barrier", POOLING, "  if (hands_on) {\n    __syncthreads();\n", "  if (hands_on) {\n"),
    Fault("flag-raised-as-if-nothing-was-handed-on", POOLING, "      if (!closed) return true;", "      if (!closed) return false;"),
    Fault("flag-relaxed", POOLING, "store_release(&p.flags[tile.slot], tile.tag)", "store_relaxed(&p.flags[tile.slot], tile.tag)", check="tsan"),
    Fault("flag-not-raised-where-nothing-is-handed-on", POOLING, "  } else if (tid == 0) {\n    store_relaxed(&p.flags[tile.slot], tile.tag);\n", ""),
    Fault("flag-not-raised-by-tiles-without-rows", POOLING, "  } else if (tid == 0) {\n", "  } else if (tid == 0 && count > 0) {\n"),
    Fault("plan-made-before-all-have-read-the-last", POOLING, "      __syncthreads();  // two groups can be so: one that ends where the tile begins, and the next\n", ""),
    Fault("plan-read-before-barrier", POOLING, "segment_end < end);\n      __syncthreads();", "segment_end < end);"),
    Fault("sums-read-before-all-have-waited", POOLING, "!= tile.tag) pause(20);\n      }\n      __syncthreads();", "!= tile.tag) pause(20);\n      }"),
    # Of port.h, whose PTX the emulator replaces by its own.
    Fault("release-relaxed", PORT, "__ATOMIC_RELEASE", "__ATOMIC_RELAXED", check="tsan"),
    Fault("acquire-relaxed", PORT, "__ATOMIC_ACQUIRE", "__ATOMIC_RELAXED", check="tsan"),
    Fault("words-stored-plainly", PORT, "__atomic_store_n(p, v, __ATOMIC_RELAXED)", "*p = v", check="tsan"),
    Fault("words-loaded-plainly", PORT, "return __atomic_load_n(p, __ATOMIC_RELAXED)", "return *p", check="tsan"),
    # Layout and padding
    Fault("values-in-padding-not-zeroed", POOLING, "    write_zeros(p, rows, row);\n    if", "    if (i < joined) write_zeros(p, rows, row);\n    if"),
    Fault("values-of-merged-rows-not-zeroed", POOLING, "    write_zeros(p, rows, row);\n    if", "    if (i >= joined) write_zeros(p, rows, row);\n    if"),
    Fault("first-chunks-alone-zeroed", POOLING, "for (int c = threadIdx.x; c < rows.chunks; c += blockDim.x) Chunks", "for (int c = threadIdx.x; c < rows.chunks; c += rows.chunks) Chunks"),
    Fault("counts-in-padding-not-zeroed", POOLING, "  if (threadIdx.x == 0) p.counts[row] = 0;\n", ""),
    Fault("ids-in-padding-not-set", POOLING, "    if (threadIdx.x == 0 && i >= joined) p.segment_ids[row] = -1;\n", ""),
    Fault("ids-of-merged-rows-overwritten", POOLING, "if (threadIdx.x == 0 && i >= joined) p.segment_ids", "if (threadIdx.x == 0) p.segment_ids"),
    Fault("tiles-of-padding-not-filled", POOLING, "    if (tile.averages) fill_padding(p, tile, rows_of<typename Dots::Rows>(p, tile), 0, 0);\n", ""),
    Fault("padding-of-the-last-tile-not-filled", POOLING, "clamped(place + kTileRows, 0, p.rows) - clamped(place, tile.length, p.rows);", "place < tile.length ? 0 : clamped(place + kTileRows, 0, p.rows) - place;"),
    Fault("rows-merged-in-tiles-before-forgotten", POOLING, "tile.begin - static_cast<int>(before.opened), count - opened", "0, count - opened"),
    Fault("rows-of-left-padding-read", POOLING, "const int64_t left = p.layout == Layout::kLeftPadded ? p.rows - tile.length : 0;", "const int64_t left = 0;"),
    Fault("left-padded-groups-not-shifted", POOLING, "p.rows - static_cast<int64_t>(shared.groups) : 0", "0 : 0"),
    Fault("groups-awaited-from-own-slot", POOLING, "await_value(&p.tiles[final_slot].opened,", "await_value(&p.tiles[tile.slot].opened,"),
    Fault("prefix-awaited-from-own-slot", POOLING, "await_value(&p.tiles[tile.slot - 1].opened,", "await_value(&p.tiles[tile.slot].opened,"),
    Fault("open-rows-awaited-from-own-slot", POOLING, "await_value(&p.open_rows[tile.slot - 1],", "await_value(&p.open_rows[tile.slot],"),
    Fault("prefix-awaited-from-the-sequence-before", POOLING, "    if (tile.begin > 0)\n      shared.before", "    if (tile.slot > 0)\n      shared.before"),
    Fault("scan-read-before-barrier", POOLING, "tile.tag)};\n  }\n  __syncthreads();", "tile.tag)};\n  }"),
    Fault("ids-off-by-one", POOLING, "__popc(opens & ((2u << tid) - 1))", "__popc(opens & ((1u << tid) - 1))"),
    Fault("counts-from-the-tile-on", POOLING, "earlier == 0 ? -before :", "earlier == 0 ? 0 :"),
    Fault("counts-of-the-first-group-of-a-tile", POOLING, "31 - __clz(static_cast<int>(earlier));\n    const int64_t group", "__ffs(static_cast<int>(earlier)) - 1;\n    const int64_t group"),
    Fault("count-of-no-group-written", POOLING, " && tile.begin + tid > 0) {", ") {"),
    Fault("count-of-a-group-that-ends-with-the-tile-lost", POOLING, "if (tid <= count && (ends", "if (tid < count && (ends"),
    Fault("groups-of-the-sequence-alone", POOLING, "before.opened + shift, opens", "(tile.begin == 0 ? 0 : before.opened) + shift, opens"),
    Fault("lengths-of-the-sequence-before", POOLING, "p.lengths[tile.sequence] = static_cast<int>(before.opened);", "p.lengths[tile.sequence] = static_cast<int>(before.opened) + opened;"),
    Fault("last-groups-of-the-call-not-counted", POOLING, "clamped(static_cast<int>(before.opened) + opened, 0, p.value_rows)", "clamped(static_cast<int>(before.opened), 0, p.rows)"),
    Fault("last-groups-of-a-sequence-not-counted", POOLING, "p.lengths[tile.sequence] = static_cast<int>(before.opened) + opened;", "p.lengths[tile.sequence] = static_cast<int>(before.opened);"),
    Fault("group-before-the-first-written", POOLING, "return group >= first_value && ", "return "),
    # A promised number: links
    Fault("negative-links-in-reverse", LINKS, "bits >> 63 != 0 ? ~bits :", "bits >> 63 != 0 ? bits :"),
    Fault("negative-links-above-positive", LINKS, "bits | uint64_t{1} << 63", "bits"),
    Fault("link-to-the-row-after", LINKS, "Dots::dot(sums, 0, tid, 1)", "Dots::dot(sums, 0, tid, 0)"),
    Fault("norm-before-the-tile-of-another-row", LINKS, "r - Dots::first_met(0)", "r - Dots::first_met(0) - 1"),
    Fault("norm-of-the-row-itself-twice", LINKS, "norm(tid), norm(tid - 1)", "norm(tid), norm(tid)"),
    Fault("cut-products-taken-for-finite", LINKS, "is_finite(squared) ? squared : HUGE_VALF", "squared"),
    Fault("links-cross-text", LINKS, "may_merge(row) && may_merge(row - 1)", "may_merge(row)"),
    Fault("links-of-text", LINKS, "may_merge(row) && may_merge(row - 1)", "may_merge(row - 1)"),
    Fault("mask-not-of-the-sequence-in-links", LINKS, "p.mergeable[tile.first_row + r]", "p.mergeable[r]"),
    Fault("first-row-of-a-sequence-linked", LINKS, "if (row == 0) {", "if (row == 0 && tile.sequence == 0) {"),
    Fault("promise-of-the-first-sequence", LINKS, "p.promise.of(tile.sequence)", "p.promise.of(0)"),
    Fault("promise-forgotten", LINKS, "static_cast<uint64_t>(p.promise.of(tile.sequence))", "0"),
    Fault("padding-begins-no-runs", LINKS, "row < p.rows) keys[row] = 0;", "row < 0) keys[row] = 0;"),
    Fault("padding-beyond-the-width", LINKS, "p.layout != Layout::kPacked && row < p.rows", "p.layout != Layout::kPacked", check="asan"),
    Fault("sums-not-awaited-in-links", LINKS, "  __syncthreads();\n  if (tid >= kTileRows) return;", "  if (tid >= kTileRows) return;"),
    Fault("rows-of-links-not-kept", LINKS, "    rows.bring();\n", ""),
    Fault("keys-as-if-left-padded", POOLING, "tile.first_row : static_cast<int64_t>(tile.sequence) * p.rows;", "tile.first_row : tile.first_row;"),
    # Selection
    Fault("promise-below-one", ALGEBRA, "return rows[sequence] < 1 ? 1 : rows[sequence];", "return rows[sequence];"),
    Fault("share-rounded-down", ALGEBRA, "ceil(product - 1e-9)", "floor(product)"),
    Fault("share-without-slack", ALGEBRA, "ceil(product - 1e-9)", "ceil(product)"),
    Fault("two-zeros", ALGEBRA, "squared_norm_b) + 0.0;", "squared_norm_b);"),
    Fault("not-finite-has-a-link", ALGEBRA, "if (!are_finite(squared_norm_a, squared_norm_b)) return -HUGE_VAL;", ""),
    Fault("ties-of-short-runs-to-the-latest", SELECT, "shared.keys[i] == key && i < tid", "shared.keys[i] == key && i > tid"),
    Fault("ties-of-short-runs-all-taken", SELECT, " || (shared.keys[i] == key && i < tid)", ""),
    Fault("short-runs-lose-their-first-link", SELECT, "for (int i = begin + 1; i < end; ++i) weaker", "for (int i = begin + 2; i < end; ++i) weaker"),
    Fault("short-runs-reach-into-the-next", SELECT, "for (int i = begin + 1; i < end; ++i) weaker", "for (int i = begin + 1; i <= end; ++i) weaker"),
    Fault("one-too-many-in-short-runs", SELECT, "weaker < groups - 1 ?", "weaker < groups ?"),
    Fault("a-full-last-block-goes-nowhere", SELECT, "goes_on = first + kSelectThreads <= s.rows", "goes_on = first + kSelectThreads < s.rows"),
    Fault("begin-not-written", SELECT, "if (begin == tid && row < s.rows) s.nearest[row] = kNoMatch;", ""),
    Fault("rows-beyond-the-end-written", SELECT, "if (begin == tid && row < s.rows)", "if (begin == tid)", check="asan"),
    Fault("keys-beyond-the-end-read", SELECT, "key[i] = t < s.rows ? s.keys[t] : 0", "key[i] = t < s.rows + 1 ? s.keys[t] : 0", check="asan"),
    Fault("cache-one-key-off", SELECT, "shared.keys[t - begin - 1] = s.keys[t];", "shared.keys[t - begin] = s.keys[t];"),
    Fault("cache-overrun", SELECT, "if (place < kCachedKeys) shared", "shared", check="asan"),
    Fault("cached-keys-read-beyond", SELECT, "place < kCachedKeys ? cached[place] : all[place]", "cached[place]", check="asan"),
    Fault("keys-beyond-the-run-loaded", SELECT, "place >= count ? kNoKey :", "", check="asan"),
    Fault("keys-beyond-the-cache-one-off", SELECT, "s.keys + begin + 1, 0}", "s.keys + begin, 0}"),
    Fault("keys-cached-before-all-have-ranked", SELECT, "  __syncthreads();\n  for (int64_t t = begin + 1 + tid;", "  for (int64_t t = begin + 1 + tid;", check="tsan"),
    Fault("long-run-ends-at-its-first-step", SELECT, "step == kStep; end += step", "step == -1; end += step"),
    Fault("last-begin-taken-for-the-first", SELECT, "for (int i = kKeysAtOnce - 1; i >= 0; --i) {", "for (int i = 0; i < kKeysAtOnce; ++i) {"),
    Fault("least-of-a-warp-alone", SELECT, "for (int w = 0; w < kSelectWarps; ++w) value", "for (int w = 0; w < 1; ++w) value"),
    Fault("end-of-a-long-run-one-off", SELECT, "step = least_of_block(next_run, shared);", "step = least_of_block(next_run + 1, shared);"),
    Fault("one-too-many-in-long-runs", SELECT, "find_cut(keys, groups - 1, shared)", "find_cut(keys, groups, shared)"),
    Fault("all-rows-of-a-long-run-not-enough", SELECT, "cut = {kNoKey, 0, -1};", "cut = {0, 0, 0};"),
    Fault("digit-of-the-byte-above", SELECT, "key[i] >> shift >> 8 == upper", "key[i] >> shift >> 8 >= upper"),
    Fault("counts-of-digits-not-cleared", SELECT, "    shared.count[tid] = 0;\n", "    if (shift == 56) shared.count[tid] = 0;\n"),
    Fault("digits-of-lower-warps-forgotten", SELECT, "    for (int w = 0; w < warp; ++w) upto += shared.warp_total[w];\n", ""),
    Fault("digits-of-lower-lanes-half-summed", SELECT, "apart < 32; apart *= 2", "apart < 16; apart *= 2"),
    Fault("keys-below-the-cut-counted-again", SELECT, "    wanted -= shared.before;\n", ""),
    Fault("last-digit-dropped", SELECT, "if (shift == 0) return", "if (shift == 8) return"),
    Fault("equals-of-long-runs-all-taken", SELECT, "if (shift == 0) return {upper, 0, wanted};", "if (shift == 0) return {upper, 0, -1};"),
    Fault("equals-of-long-runs-to-the-latest", SELECT, "equal && earlier < cut.of_equals", "equal && earlier >= cut.of_equals"),
    Fault("equals-of-earlier-rows-forgotten", SELECT, "int64_t earlier = equals;", "int64_t earlier = 0;"),
    Fault("equals-of-lower-lanes-forgotten", SELECT, "w == tid / 32 ? (1u << tid % 32) - 1 : 0", "0"),
    Fault("least-overtaken", SELECT, "  __syncthreads();\n  return value;", "  return value;", check="tsan"),
    # The pooling kernel, told k(t)
    Fault("known-matches-of-the-first-tile", POOLING, "p.nearest[keys_before(p, tile) + tile.begin + tid]", "p.nearest[keys_before(p, tile) + tid]"),
    Fault("known-matches-of-the-first-sequence", POOLING, "p.nearest[keys_before(p, tile) + tile.begin + tid]", "p.nearest[tile.begin + tid]"),
    Fault("known-matches-beyond-the-tile", POOLING, "if (tid < count) k = p.nearest", "if (tid < kTileRows) k = p.nearest", check="asan"),
    Fault("known-openings-join", POOLING, "tid] == 1 ? 1 : kNone;", "tid] == 1 ? 1 : 1;"),
    Fault("unknown-matches-believed", POOLING, "tid] == 1 ? 1 : kNone;", "tid];", check="asan"),
    Fault("rows-of-known-matches-not-kept", POOLING, "  if (is_known) rows().await();  // while others look at what was published\n", ""),
    Fault("rows-without-a-group-not-filled", POOLING, "if (is_last && p.fills_value_rows)", "if (false)"),
    Fault("first-row-without-a-group-not-filled", POOLING, "for (int row = all; row < p.value_rows", "for (int row = all + 1; row < p.value_rows"),
    Fault("ids-beyond-the-room", POOLING, "id < p.value_rows ? id : p.value_rows - 1", "id"),
    Fault("more-groups-than-room", POOLING, "group < first_value + p.value_rows;", "group < first_value + p.rows;", check="asan"),
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
