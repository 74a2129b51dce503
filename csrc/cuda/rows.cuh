// Rows of a tile: their formats, where they lie, and their dot products.
//
// A row is cut into chunks of 16 bytes; chunk c belongs to thread c % blockDim. Each thread copies its chunks of the
// tile's rows, and of as many rows before them as fit, to shared memory, and is the only one to read them back: no
// barrier. Rows that were not kept there come from L2.
//
// Dot products are taken 8 rows x L lags at a time (lag 0 is the squared norm) in 8 L registers. A row is loaded and
// widened once and multiplied with itself and the L - 1 rows before it, which are still in registers. A dot product is
// a chain of fused multiply-adds over a thread's chunks, then a tree over the lanes of a warp, then the warps in order:
// the same for every pair, so it depends on the two rows alone.
#pragma once

#include "params.h"
#include "port.h"

namespace affinity_pool::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

// A format turns a chunk into kElements floats and back.
struct BFloat16 {
  using Element = uint16_t;
  static constexpr int kElements = 8;
  AP_DEVICE static void widen(uint4 chunk, float* f) {
    const uint32_t pair[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      f[2 * i] = bits_to_float(pair[i] << 16);
      f[2 * i + 1] = bits_to_float(pair[i] & 0xffff0000u);
    }
  }
  AP_DEVICE static uint4 narrow(const float* f) {
    return {pack_bfloat16(f[0], f[1]), pack_bfloat16(f[2], f[3]), pack_bfloat16(f[4], f[5]), pack_bfloat16(f[6], f[7])};
  }
};

struct Float16 {
  using Element = uint16_t;
  static constexpr int kElements = 8;
  AP_DEVICE static void widen(uint4 chunk, float* f) {
    const uint32_t pair[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      f[2 * i] = half_to_float(static_cast<uint16_t>(pair[i] & 0xffffu));
      f[2 * i + 1] = half_to_float(static_cast<uint16_t>(pair[i] >> 16));
    }
  }
  AP_DEVICE static uint4 narrow(const float* f) {
    return {pack_half(f[0], f[1]), pack_half(f[2], f[3]), pack_half(f[4], f[5]), pack_half(f[6], f[7])};
  }
};

struct Float32 {
  using Element = uint32_t;
  static constexpr int kElements = 4;
  AP_DEVICE static void widen(uint4 chunk, float* f) {
    f[0] = bits_to_float(chunk.x);
    f[1] = bits_to_float(chunk.y);
    f[2] = bits_to_float(chunk.z);
    f[3] = bits_to_float(chunk.w);
  }
  AP_DEVICE static uint4 narrow(const float* f) {
    return {float_to_bits(f[0]), float_to_bits(f[1]), float_to_bits(f[2]), float_to_bits(f[3])};
  }
};

// A chunk of a row in global memory. Aligned: rows start at multiples of 16 bytes and end with a whole chunk. Else
// elements go one by one and the last chunk of a row is filled up with zeros.
template <class F, bool kAligned>
struct Chunks {
  using Element = typename F::Element;
  static constexpr int kPerWord = 4 / sizeof(Element);

  AP_DEVICE static uint4 load(const Element* row, int c, int dim) {
    const Element* p = row + c * F::kElements;
    if constexpr (kAligned) {
      return load_constant(p);
    } else {
      uint32_t word[4] = {0, 0, 0, 0};
#pragma unroll
      for (int i = 0; i < F::kElements; ++i)
        if (c * F::kElements + i < dim)
          word[i / kPerWord] |= static_cast<uint32_t>(p[i]) << (8 * sizeof(Element) * (i % kPerWord));
      return {word[0], word[1], word[2], word[3]};
    }
  }
  AP_DEVICE static void store(Element* row, int c, int dim, uint4 chunk) {
    Element* p = row + c * F::kElements;
    if constexpr (kAligned) {
      *reinterpret_cast<uint4*>(p) = chunk;
    } else {
      const uint32_t word[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
      for (int i = 0; i < F::kElements; ++i)
        if (c * F::kElements + i < dim)
          p[i] = static_cast<Element>(word[i / kPerWord] >> (8 * sizeof(Element) * (i % kPerWord)));
    }
  }
};

// The rows around a tile, numbered from its first: -1 is the row before it.
template <class F, bool kAligned>
struct TileRows {
  using Element = typename F::Element;
  const Element* first;  // row 0
  int64_t stride;        // elements from one row to the next
  int dim;
  int chunks;     // of a row
  int from, end;  // rows that belong to the tile or to the window before it
  int kept_from;  // rows from here on are in shared memory
  uint4* kept;    // of row kept_from, chunk 0

  AP_DEVICE void keep() const {
    for (int r = kept_from > from ? kept_from : from; r < end; ++r) {
      const Element* row = first + r * stride;
      uint4* to = place(r, 0);
#pragma unroll 4
      for (int c = threadIdx.x; c < chunks; c += blockDim.x) {
        if constexpr (kAligned)
          copy_async(to + c, row + c * F::kElements);
        else
          to[c] = Chunks<F, kAligned>::load(row, c, dim);
      }
    }
    if constexpr (kAligned) copies_wait();
  }
  AP_DEVICE uint4* place(int r, int c) const { return kept + static_cast<int64_t>(r - kept_from) * chunks + c; }

  AP_DEVICE uint4 load(int r, int c) const {
    return r >= kept_from ? *place(r, c) : Chunks<F, kAligned>::load(first + r * stride, c, dim);
  }
  AP_DEVICE void widen(int r, int c, float* f) const {
    if (r < from || r >= end) {
#pragma unroll
      for (int e = 0; e < F::kElements; ++e) f[e] = 0;
    } else {
      F::widen(load(r, c), f);
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

// Dot products of rows row..row + 8 with the rows lag..lag + kLags before them. In warp 0 lane i returns that of row
// i / kLags and lag i % kLags; the other warps must pass a barrier before they call again.
template <int kLags, bool kSelf, class F, bool kAligned>
AP_DEVICE float dots(const TileRows<F, kAligned>& rows, int row, int lag, float (*warp_sums)[32]) {
  constexpr int kSums = kTileRows * kLags;
  float sum[kSums];
#pragma unroll
  for (int i = 0; i < kSums; ++i) sum[i] = 0;
  for (int c = threadIdx.x; c < rows.chunks; c += blockDim.x) {
    float lagged[kLags][F::kElements];  // row r - lag is in place r % kLags
#pragma unroll
    for (int l = 1; l < kLags; ++l) rows.widen(row - lag - l, c, lagged[kLags - l]);
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) {
      rows.widen(row + r - lag, c, lagged[r % kLags]);
      float own[F::kElements];
      if constexpr (!kSelf) rows.widen(row + r, c, own);
#pragma unroll
      for (int l = 0; l < kLags; ++l) {
        const float* a = kSelf ? lagged[r % kLags] : own;
        const float* b = lagged[(r + kLags - l) % kLags];
#pragma unroll
        for (int e = 0; e < F::kElements; ++e) sum[r * kLags + l] = fmaf(a[e], b[e], sum[r * kLags + l]);
      }
    }
  }
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  warp_sums[warp][lane] = sum_over_lanes<kSums>(sum, lane);
  __syncthreads();
  float total = 0;
  if (warp == 0) {
    total = warp_sums[0][lane];
    for (int w = 1; w < static_cast<int>(blockDim.x) / 32; ++w) total += warp_sums[w][lane];
  }
  return total;
}

}  // namespace affinity_pool::cuda
