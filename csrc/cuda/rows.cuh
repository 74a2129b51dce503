// Rows of a tile: their formats, and where they lie.
//
// A row is cut into chunks of 16 bytes; chunk c belongs to thread c % blockDim, so 32 chunks side by side to a warp. It
// copies its chunks of the tile's rows, and of as many rows before them as fit, to shared memory, and no other warp
// reads them: no barrier. Rows that were not kept there come from L2.
#pragma once

#include "params.h"
#include "port.h"

namespace affinity_pool::cuda {

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
  AP_DEVICE static void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    multiply_add_bfloat16(d, a, b0, b1);
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
  AP_DEVICE static void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    multiply_add_half(d, a, b0, b1);
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
      store_wide(p, chunk);
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
  int kept_stride;
  uint4* kept;  // of row kept_from, chunk 0

  AP_DEVICE void bring() const {
    const int begin = kept_from > from ? kept_from : from;
    for (int c = threadIdx.x; c < chunks; c += blockDim.x) {
      const Element* row = first + begin * stride;
      uint4* to = place(begin, c);
#pragma unroll 4
      for (int r = begin; r < end; ++r) {
        if constexpr (kAligned)
          copy_async(to, row + c * F::kElements);
        else
          *to = Chunks<F, kAligned>::load(row, c, dim);
        row += stride;
        to += kept_stride;
      }
    }
  }
  // What a warp reads of kept rows must be there: at the latest here.
  AP_DEVICE void await() const {
    if constexpr (kAligned) copies_wait();
    __syncwarp();
  }
  AP_DEVICE uint4* place(int r, int c) const { return kept + (r - kept_from) * kept_stride + c; }
  AP_DEVICE bool all_kept() const { return kept_from <= 0; }  // of the tile's own

  AP_DEVICE uint4 load(int r, int c) const {
    return r >= kept_from ? *place(r, c) : Chunks<F, kAligned>::load(first + r * stride, c, dim);
  }
  // Of a row of the tile, kOwn: which was kept.
  template <bool kOwn>
  AP_DEVICE uint4 load(int r, int c) const {
    if constexpr (kOwn)
      return *place(r, c);
    else
      return load(r, c);
  }
  // The nearest row that exists. What is computed of a row that stands in for one that does not is not looked at.
  AP_DEVICE int existing(int r) const { return r < from ? from : r >= end ? end - 1 : r; }
};

}  // namespace affinity_pool::cuda
