// Dot products of a tile's rows with those before them, in passes of so many lags, and squared norms of the rows that a
// pass is the first to meet. A pass leaves a partial sum a warp in shared memory; whoever decides adds them up, warp by
// warp. Each sum has one order for all pairs and all places, so a dot product depends on its two rows alone.
//
// 16-bit rows: by matrix instructions, whose products are exact and whose sums lose less than a chain of float32
// additions (docs/cost-model.md has the figures). A pass multiplies the eight rows of the tile with sixteen before
// them: the rows -8..7 in the first, which is all that a window of up to eight needs, then -24..-9 and -40..-25. An
// operand is sixteen features of a row; which sixteen does not matter as long as both operands agree. So a lane reads
// 16 bytes of its row, which serve two multiplications, and a row needs no other layout than its own. What the tile's
// rows multiply is theirs already; norms of the others are the diagonal of a second product.
//
// float32 rows: by fused multiply-adds, 8 rows x L lags in 8 L registers. A row is loaded once and multiplied with
// itself and the L - 1 rows before it, which are still in registers. A sum is a chain over a thread's chunks, then a
// tree over the lanes of a warp.
#pragma once

#include <type_traits>

#include "rows.cuh"

namespace affinity_pool::cuda {

struct DotSums {
  float pair[kMaxWarps][16 * kTileRows];
  float square[kMaxWarps][16];
};

AP_DEVICE float over_warps(const float* sum, int stride) {
  float total = *sum;
#pragma unroll
  for (int w = 1; w < kMaxWarps; ++w)
    if (w < static_cast<int>(blockDim.x) / 32) total += sum[w * stride];
  return total;
}

// A row's chunks, in shared memory or not.
template <class F, bool kAligned>
struct Row {
  const TileRows<F, kAligned>& rows;
  int r;
  const uint4* at;

  AP_DEVICE Row(const TileRows<F, kAligned>& rows, int wanted) : rows(rows), r(rows.existing(wanted)) {
    if constexpr (kAligned)
      at = r >= rows.kept_from ? rows.place(r, 0) : reinterpret_cast<const uint4*>(rows.first + r * rows.stride);
  }
  AP_DEVICE uint4 operator[](int c) const {
    if constexpr (kAligned)
      return at[c];
    else
      return rows.load(r, c);
  }
};

// The rows from one on, a chunk of each; where there is no row, the nearest that exists.
template <class F, bool kAligned>
struct Walk {
  const TileRows<F, kAligned>& rows;
  int r, c;
  const uint4* at = nullptr;

  AP_DEVICE Walk(const TileRows<F, kAligned>& rows, int first, int c) : rows(rows), r(first), c(c) {
    if constexpr (kAligned) at = Row<F, kAligned>(rows, first).at + c;
  }
  AP_DEVICE uint4 next() {
    // Opaque: else the addresses of all rows are held in registers across the loop over chunks.
    if constexpr (!kAligned) return rows.load(rows.existing(opaque(r++)), c);
    const uint4 chunk = *at;
    ++r;
    const int64_t step = r > rows.kept_from ? rows.kept_stride : rows.stride / F::kElements;
    const uint4* next = r == rows.kept_from ? rows.place(r, c) : at + step;
    at = r > rows.from && r < rows.end ? next : at;
    return chunk;
  }
};

template <class F, bool kAligned>
struct MatrixDots {
  using Format = F;
  using Rows = TileRows<F, kAligned>;
  static constexpr int kLags = 16, kSteps = 4;  // so many times 32 features are 16 chunks

  // Pass p meets rows first_met(p) and the fifteen behind it, as far as they lie before the tile.
  AP_DEVICE static int first_met(int pass) { return -16 * pass - 8; }
  // Lags of which a pass knows some, from a multiple of four, and the last of which, or an earlier one, it knows all.
  AP_DEVICE static int first_lag(int pass) { return pass == 0 ? 0 : 16 * pass - 8; }
  AP_DEVICE static int last_lag(int pass) { return 16 * pass + 15; }
  AP_DEVICE static bool knows(int pass, int row, int lag) {
    const int met = row - lag - first_met(pass);
    return met >= 0 && met < 16;
  }
  AP_DEVICE static int known_of(int pass, int row) { return row - first_met(pass); }
  AP_DEVICE static float dot(const DotSums& sums, int pass, int row, int lag) {
    return over_warps(&sums.pair[0][(row - lag - first_met(pass)) * kTileRows + row], 16 * kTileRows);
  }
  AP_DEVICE static float square(const DotSums& sums, int met) { return over_warps(&sums.square[0][met], 16); }

  AP_DEVICE static void take(const Rows& rows, int pass, DotSums& sums) {
    if (pass == 0)
      take<true>(rows, pass, sums);
    else
      take<false>(rows, pass, sums);
  }

  // kFirst: the first pass, in which the tile's own rows are the latter eight of the sixteen.
  template <bool kFirst>
  AP_DEVICE static void take(const Rows& rows, int pass, DotSums& sums) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
    const int own_row = rows.existing(g);
    const Row<F, kAligned> upper_row(rows, first_met(pass) + g), lower_row(rows, first_met(pass) + 8 + g);
    // Two chains each: the halves of 16 bytes.
    float dots[2][4] = {}, squares[2][4] = {}, lower_squares[2][4] = {};
    const auto multiply = [&](uint4 upper, uint4 lower, uint4 own) {
      const uint32_t a[2][4] = {{upper.x, lower.x, upper.y, lower.y}, {upper.z, lower.z, upper.w, lower.w}};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        F::multiply_add(dots[half], a[half], half == 0 ? own.x : own.z, half == 0 ? own.y : own.w);
        F::multiply_add(squares[half], a[half], half == 0 ? upper.x : upper.z, half == 0 ? upper.y : upper.w);
        if constexpr (!kFirst)
          F::multiply_add(lower_squares[half], a[half], half == 0 ? lower.x : lower.z, half == 0 ? lower.y : lower.w);
      }
    };

    int chunk = warp * 32;
    if constexpr (kFirst) {
      // Half of a warp's 32 chunks at a time, and of the upper rows, which may come from L2, the next half besides.
      const int whole = rows.all_kept() ? rows.chunks / 32 * 32 : 0;
      uint4 ahead[kSteps];
#pragma unroll
      for (int step = 0; step < kSteps; ++step)
        if (chunk < whole) ahead[step] = upper_row[chunk + 4 * step + q];
#pragma unroll 1
      while (chunk < whole) {
        const int next = chunk + (chunk % 32 == 0 ? 16 : static_cast<int>(blockDim.x) - 16);
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          const uint4 own = *rows.place(own_row, chunk + 4 * step + q);
          multiply(ahead[step], own, own);
          if (next < whole) ahead[step] = upper_row[next + 4 * step + q];
        }
        chunk = next;
      }
    }
    for (; chunk < rows.chunks; chunk += blockDim.x) {
      const int end = chunk + 32 < rows.chunks ? chunk + 32 : rows.chunks;
#pragma unroll 1
      for (int c = chunk + q; c - q < end; c += 4) {
        const bool exists = c < end;
        const uint4 nothing{0, 0, 0, 0}, own = exists ? rows.load(own_row, c) : nothing;
        multiply(exists ? upper_row[c] : nothing, kFirst ? own : exists ? lower_row[c] : nothing, own);
      }
    }

    float* pair = sums.pair[warp] + g * kTileRows + 2 * q;
    constexpr int kLower = 8 * kTileRows;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      pair[i] = dots[0][i] + dots[1][i];
      pair[kLower + i] = dots[0][2 + i] + dots[1][2 + i];
    }
    if (q == g / 2) {  // the diagonal
      float* square = sums.square[warp] + g;
      square[0] = g % 2 == 0 ? squares[0][0] + squares[1][0] : squares[0][1] + squares[1][1];
      if constexpr (!kFirst)
        square[8] = g % 2 == 0 ? lower_squares[0][2] + lower_squares[1][2] : lower_squares[0][3] + lower_squares[1][3];
    }
  }
};

// kValues sums over the lanes of a warp at once: lane l returns the sum of a[l % kValues]. 31 shuffles for 32 sums.
template <int kValues, int kOffset = 16>
AP_DEVICE float sum_over_lanes(float* a, int lane) {
  if constexpr (kOffset >= kValues) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) a[i] += __shfl_xor_sync(kAllLanes, a[i], kOffset);
  } else {
    const bool upper = lane & kOffset;
#pragma unroll
    for (int i = 0; i < kOffset; ++i) {
      const float keep = upper ? a[i + kOffset] : a[i], send = upper ? a[i] : a[i + kOffset];
      a[i] = keep + __shfl_xor_sync(kAllLanes, send, kOffset);
    }
  }
  if constexpr (kOffset > 1)
    return sum_over_lanes<kValues, kOffset / 2>(a, lane);
  else
    return a[0];
}

template <class F, bool kAligned, int kLagsOfPass>
struct ChainDots {
  using Format = F;
  using Rows = TileRows<F, kAligned>;
  static constexpr int kLags = kLagsOfPass;

  AP_DEVICE static int first_met(int pass) { return 1 - kLags * (pass + 1); }
  AP_DEVICE static int first_lag(int pass) { return kLags * pass; }
  AP_DEVICE static int last_lag(int pass) { return kLags * pass + kLags - 1; }
  AP_DEVICE static bool knows(int, int, int) { return true; }
  AP_DEVICE static int known_of(int pass, int) { return last_lag(pass); }
  AP_DEVICE static float dot(const DotSums& sums, int, int row, int lag) {
    return over_warps(&sums.pair[0][row * kLags + lag % kLags], 16 * kTileRows);
  }
  AP_DEVICE static float square(const DotSums& sums, int met) { return over_warps(&sums.square[0][met], 16); }

  AP_DEVICE static void take(const Rows& rows, int pass, DotSums& sums) {
    const bool whole = rows.all_kept() && rows.end == kTileRows;
    if (!whole)
      take<false, false>(rows, pass, sums);
    else if (pass > 0)
      take<false, true>(rows, pass, sums);
    else
      take<true, true>(rows, pass, sums);
  }

  // kFirst: lag 0 is the row itself, and is read once. kWhole: the tile has eight rows, and all were kept.
  template <bool kFirst, bool kWhole>
  AP_DEVICE static void take(const Rows& rows, int pass, DotSums& sums) {
    constexpr int kSums = kTileRows * kLags;
    const int lag = kFirst ? 0 : first_lag(pass);
    float sum[kSums] = {}, squares[kLags] = {};
    const auto multiply = [](const float* a, const float* b, float& total) {
#pragma unroll
      for (int e = 0; e < F::kElements; ++e) total = fmaf(a[e], b[e], total);
    };
#pragma unroll 1
    for (int c = threadIdx.x; c < rows.chunks; c += blockDim.x) {
      const uint4* own_at = rows.place(0, c);
      Walk<F, kAligned> walk(rows, 1 - kLags - lag, c), own_walk(rows, 0, c);
      float lagged[kLags][F::kElements];  // row r - lag is in place r % kLags
#pragma unroll
      for (int l = kLags - 1; l > 0; --l) {
        float* row = lagged[kLags - l];
        F::widen(walk.next(), row);
        multiply(row, row, squares[kLags - 1 - l]);
      }
#pragma unroll
      for (int r = 0; r < kTileRows; ++r) {
        float own[F::kElements], *now = lagged[r % kLags];
        F::widen(kWhole ? *own_at : own_walk.next(), own);
        own_at += rows.kept_stride;
        if constexpr (kFirst) {
#pragma unroll
          for (int e = 0; e < F::kElements; ++e) now[e] = own[e];
        } else {
          F::widen(walk.next(), now);
          if (r == 0) multiply(now, now, squares[kLags - 1]);
        }
#pragma unroll
        for (int l = 0; l < kLags; ++l) multiply(own, lagged[(r + kLags - l) % kLags], sum[r * kLags + l]);
      }
    }
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const float total = sum_over_lanes<kSums>(sum, lane), square = sum_over_lanes<kLags>(squares, lane);
    sums.pair[warp][lane] = total;
    if (lane < kLags) sums.square[warp][lane] = square;
  }
};

// How rows of this format are multiplied with the row before.
template <class F, bool kAligned>
using NeighbourDots =
    std::conditional_t<sizeof(typename F::Element) == 2, MatrixDots<F, kAligned>, ChainDots<F, kAligned, 2>>;

// Calls `use` with an object of the type that multiplies rows of this format at this window.
template <class F, bool kAligned, class Use>
auto with_dots(int window, Use use) {
  if constexpr (sizeof(typename F::Element) == 2) {
    return use(MatrixDots<F, kAligned>{});
  } else {
    return window == 1 ? use(NeighbourDots<F, kAligned>{}) : use(ChainDots<F, kAligned, 4>{});
  }
}

}  // namespace affinity_pool::cuda
