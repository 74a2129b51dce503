// Means of the groups that end in a tile, and sums handed on for those that do not.
//
// A group's rows are summed in segments of eight, counted from the group's first row; full segments are joined in
// blocks of 8, 64, 512 ...; what is left at the end is added last. The order depends on the number of rows alone, so a
// mean does not depend on where its group lies, and up to eight rows are summed one after the other, as a stream does.
// Most groups are so short: their rows lie in the tile or up to seven before it, and none is read that no mean needs.
//
// A tile sees the end of at most one full segment. If the group goes on behind the tile, it hands on that segment, or
// the largest block that ends with it, in the tile's own row of `sums`; the first of the seven earlier blocks that make
// a larger one are read from the rows of earlier tiles. So 1500 rows are two hops of eight sums and a few more, not 187
// sums read by one block. A tile raises its flag when its row of sums is there, or will never be: no one waits in vain.
#pragma once

#include "rows.cuh"

namespace affinity_pool::cuda {

constexpr int kFan = 8;        // segments in a block, blocks in a larger block
constexpr int kMaxTerms = 72;  // sums that one tile may need: seven at each of ten sizes, 8^10 segments being 2^33 rows

// The group that is open when the tile begins, if it is longer than a segment: what the tile needs to go on with it.
struct Carried {
  int full;              // segments that ended in earlier tiles
  int head;              // rows of the segment that has not ended, which lie before the tile
  int joining, earlier;  // numbers of:
  int join[kMaxTerms];   // tiles whose sums, seven at a time, join the segment that ends here to larger blocks
  int add[kMaxTerms];    // tiles whose sums come before that, should the group end here
};

// `start`: row of the sequence with which the group began, `begin`: with which the tile does. Segment i of the group
// ends in tile first + i. `ends_segment`: whether the segment that is open ends in this tile, the group still open.
AP_DEVICE void plan(Carried& carried, int start, int begin, int sequence_slot, int slot, bool ends_segment) {
  const int rows = begin - start, first = sequence_slot + (start + kTileRows - 1) / kTileRows;
  const auto place = [&](int segment) {  // of its sum; held inside what exists even if bounds make no sense
    const int tile = first + segment;
    return tile < 0 ? 0 : tile >= slot ? slot - 1 : tile;
  };
  carried.full = rows / kTileRows;
  carried.head = rows % kTileRows;
  carried.joining = carried.earlier = 0;
  const int segments = carried.full + (ends_segment ? 1 : 0);
  int joined = ends_segment ? 1 : 0;  // segments in the largest block that ends here
  if (ends_segment)
    for (; segments % (joined * kFan) == 0; joined *= kFan)
      for (int i = kFan - 1; i > 0; --i) carried.join[carried.joining++] = place(segments - 1 - i * joined);
  for (int done = 0, before = segments - joined; done < before;) {
    int size = 1;
    while (done % (size * kFan) == 0 && done + size * kFan <= before) size *= kFan;
    done += size;
    carried.add[carried.earlier++] = place(done - 1);
  }
}

template <class Element>
struct SumRows {
  float* first;
  int64_t stride;
  AP_DEVICE float* of(int tile, int c) const {
    return first + tile * stride + static_cast<int64_t>(c) * (kChunkBytes / sizeof(Element));
  }
};

template <int kElements>
AP_DEVICE void add_sum(const float* sums, float* total) {
#pragma unroll
  for (int e = 0; e < kElements; e += 4) {
    const float4 v = load_exchanged(sums + e);
    total[e] += v.x;
    total[e + 1] += v.y;
    total[e + 2] += v.z;
    total[e + 3] += v.w;
  }
}

// Chunks c, c + blockDim ... of the mean of rows begin..end. kKept: they are in shared memory.
template <int kAtOnce, bool kKept, class F, bool kAligned>
AP_DEVICE void write_chunks(const TileRows<F, kAligned>& rows, int c, int begin, int end, float scale,
                            typename F::Element* value) {
  constexpr int kElements = F::kElements;
  uint4 chunk[kAtOnce];
  const auto load = [&](int r) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) chunk[i] = rows.template load<kKept>(r, c + i * static_cast<int>(blockDim.x));
  };
  load(begin);
  if (end - begin > 1) {
    float sum[kAtOnce][kElements];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) F::widen(chunk[i], sum[i]);
#pragma unroll 1
    for (int r = begin + 1; r < end; ++r) {
      load(r);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        float row[kElements];
        F::widen(chunk[i], row);
#pragma unroll
        for (int e = 0; e < kElements; ++e) sum[i][e] += row[e];
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
      for (int e = 0; e < kElements; ++e) sum[i][e] = fmaf(sum[i][e], scale, 0.0f);  // begun with 0, it is never -0
      chunk[i] = F::narrow(sum[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kAtOnce; ++i)
    Chunks<F, kAligned>::store(value, c + i * static_cast<int>(blockDim.x), rows.dim, chunk[i]);
}

template <bool kKept, class F, bool kAligned>
AP_DEVICE void write_short(const TileRows<F, kAligned>& rows, int begin, int end, typename F::Element* value) {
  const int threads = blockDim.x;
  const float scale = 1.0f / static_cast<float>(end - begin);
  int c = threadIdx.x;
  for (; c + threads < rows.chunks; c += 2 * threads) write_chunks<2, kKept>(rows, c, begin, end, scale, value);
  if (c < rows.chunks) write_chunks<1, kKept>(rows, c, begin, end, scale, value);
}

// The mean of rows begin..end, eight at most.
template <class F, bool kAligned>
AP_DEVICE void write_short(const TileRows<F, kAligned>& rows, int begin, int end, typename F::Element* value) {
  if (begin >= rows.kept_from)
    write_short<true>(rows, begin, end, value);
  else
    write_short<false>(rows, begin, end, value);
}

// The group that was open when the tile began: its rows up to `end`, of which `segment_end` is the last of a segment,
// or lies behind them. It ends there, and its mean of `count` rows is written; or `value` is null, and the sum handed
// on.
template <class F, bool kAligned>
AP_DEVICE void write_long(const TileRows<F, kAligned>& rows, const Carried& carried, int end, int segment_end,
                          typename F::Element* value, int count, SumRows<typename F::Element> sums, int slot) {
  constexpr int kElements = F::kElements;
  const float scale = 1.0f / static_cast<float>(count);
  for (int c = threadIdx.x; c < rows.chunks; c += blockDim.x) {
    float segment[kElements] = {}, block[kElements] = {};  // the open segment; the block that ended in this tile
    for (int r = -carried.head; r < end; ++r) {
      float row[kElements];
      F::widen(rows.load(r, c), row);
#pragma unroll
      for (int e = 0; e < kElements; ++e) segment[e] += row[e];
      if (r != segment_end) continue;
      for (int i = 0; i < carried.joining; i += kFan - 1) {
        float earlier[kElements] = {};
        for (int q = 0; q < kFan - 1; ++q) add_sum<kElements>(sums.of(carried.join[i + q], c), earlier);
#pragma unroll
        for (int e = 0; e < kElements; ++e) segment[e] = earlier[e] + segment[e];
      }
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        block[e] = segment[e];
        segment[e] = 0;
      }
    }
    if (value == nullptr) {
      float* to = sums.of(slot, c);
#pragma unroll
      for (int e = 0; e < kElements; e += 4) store_wide(to + e, Float32::narrow(block + e));
      continue;
    }
    float total[kElements] = {};
    for (int i = 0; i < carried.earlier; ++i) add_sum<kElements>(sums.of(carried.add[i], c), total);
#pragma unroll
    for (int e = 0; e < kElements; ++e) total[e] = (total[e] + block[e] + segment[e]) * scale;
    Chunks<F, kAligned>::store(value, c, rows.dim, F::narrow(total));
  }
}

}  // namespace affinity_pool::cuda
