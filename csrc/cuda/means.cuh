// Means of the groups that end in a tile, and sums handed on for those that do not.
//
// A group's rows are summed in segments of eight, counted from the group's first row; full segments are joined in
// blocks of 8, 64, 512 ...; what is left at the end is added last. The order depends on the number of rows alone, so a
// mean does not depend on where its group lies, and up to eight rows are summed one after the other, as a stream does.
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

// The group that is open when the tile begins, and what the tile needs of earlier ones to go on with it.
struct Carried {
  int full;              // segments that ended in earlier tiles
  int head;              // rows of the segment that has not ended, which lie before the tile
  int joining, earlier;  // numbers of:
  int join[kMaxTerms];   // tiles whose sums, seven at a time, join the segment that ends here to larger blocks
  int add[kMaxTerms];    // tiles whose sums come before that, should the group end here
  int join_size;         // segments in the largest block so made
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
  carried.join_size = ends_segment ? 1 : 0;
  const int segments = carried.full + (ends_segment ? 1 : 0);
  if (ends_segment)
    for (; segments % (carried.join_size * kFan) == 0; carried.join_size *= kFan)
      for (int i = kFan - 1; i > 0; --i) carried.join[carried.joining++] = place(segments - 1 - i * carried.join_size);
  for (int done = 0, before = segments - carried.join_size; done < before;) {
    int size = 1;
    while (done % (size * kFan) == 0 && done + size * kFan <= before) size *= kFan;
    done += size;
    carried.add[carried.earlier++] = place(done - 1);
  }
}

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

template <int kElements>
AP_DEVICE void set_zero(float* sum) {
#pragma unroll
  for (int e = 0; e < kElements; ++e) sum[e] = 0;
}

// Chunk c of the means of the groups that end in the tile, and of the sum handed on. Bit r of `opens`: row r opens a
// group; bit rows.end: the sequence ends with the tile. `group`: row of `values` of the group that is open on entry, or
// the row before the first one's.
template <class F, bool kAligned>
AP_DEVICE void write_chunk(int c, const TileRows<F, kAligned>& rows, const Carried& carried, uint32_t opens,
                           typename F::Element* values, int64_t group, int64_t groups, float* sums, int64_t sums_stride,
                           int slot) {
  constexpr int kElements = F::kElements;
  const float* column = sums + static_cast<int64_t>(c) * kElements;
  float segment[kElements], blocks[kElements];  // the open segment; the block that ended in this tile
  set_zero<kElements>(segment);
  set_zero<kElements>(blocks);
  uint4 chunk{0, 0, 0, 0};
  int full = carried.full, in_segment = 0;
  bool carries = true;
  for (int r = -carried.head;; ++r) {
    if (r >= 0 && (opens >> r & 1) != 0) {
      const int count = full * kTileRows + in_segment;
      if (count > 1) {
        float total[kElements];
        set_zero<kElements>(total);
        for (int i = 0; carries && i < carried.earlier; ++i)
          add_sum<kElements>(column + carried.add[i] * sums_stride, total);
        const float scale = 1.0f / static_cast<float>(count);
#pragma unroll
        for (int e = 0; e < kElements; ++e) total[e] = (total[e] + blocks[e] + segment[e]) * scale;
        chunk = F::narrow(total);
      }
      if (count > 0 && group < groups) Chunks<F, kAligned>::store(values + group * rows.dim, c, rows.dim, chunk);
      ++group;
      full = in_segment = 0;
      carries = false;
      set_zero<kElements>(segment);
      set_zero<kElements>(blocks);
    }
    if (r == rows.end) break;
    chunk = rows.load(r, c);
    float row[kElements];
    F::widen(chunk, row);
#pragma unroll
    for (int e = 0; e < kElements; ++e) segment[e] += row[e];
    if (++in_segment == kTileRows) {
      for (int i = 0; carries && i < carried.joining; i += kFan - 1) {
        set_zero<kElements>(blocks);
        for (int q = 0; q < kFan - 1; ++q) add_sum<kElements>(column + carried.join[i + q] * sums_stride, blocks);
#pragma unroll
        for (int e = 0; e < kElements; ++e) segment[e] = blocks[e] + segment[e];
      }
#pragma unroll
      for (int e = 0; e < kElements; ++e) blocks[e] = segment[e];
      if (opens >> (r + 1) == 0) {  // the group goes on behind the tile
        float* to = sums + slot * sums_stride + static_cast<int64_t>(c) * kElements;
#pragma unroll
        for (int e = 0; e < kElements; e += 4)
          *reinterpret_cast<float4*>(to + e) = {blocks[e], blocks[e + 1], blocks[e + 2], blocks[e + 3]};
      }
      set_zero<kElements>(segment);
      in_segment = 0;
      ++full;
    }
  }
}

}  // namespace affinity_pool::cuda
