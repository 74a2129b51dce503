// Links, if a number of rows is promised: what holds each row to the one before it, as eight bytes a row.
//
// The cut between groups is known when the last link is, and no block may wait for blocks that have not started: so
// there are three launches, and what is between two of them is the barrier. This one takes the dot products that a call
// at window 1 would, tile by tile, for the same sums and so the same decisions; select.cuh finds the weakest; and the
// pooling kernel is told k(t) instead of looking for it.
//
// Traffic. x comes from memory once and goes to L2, where the pooling kernel finds it: 12 of an H100's 50 MB for 1500
// bfloat16 rows of 4096. What does not fit there is read from memory twice. Links and k(t) are nine bytes a row.
//
// A link is stored as a key: an integer of the same order, above kLeastKey. Below it is what begins a run: the number
// of rows promised to the sequence, or 0. Padding is runs of one row.
#pragma once

#include "pooling.cuh"

namespace affinity_pool::cuda {

AP_DEVICE uint64_t key_of(double link) {
  const uint64_t bits = double_to_bits(link);
  return bits >> 63 != 0 ? ~bits : bits | uint64_t{1} << 63;
}

// The body of a block.
template <class Dots>
AP_DEVICE void link_tile(const Params& p) {
  Shared& shared = *reinterpret_cast<Shared*>(dynamic_shared_memory());
  const int tid = threadIdx.x;
  if (tid < 32) {
    const Tile found = tile_at(p, static_cast<int>(blockIdx.x), tid);
    if (tid == 0) shared.tile = found;
  }
  __syncthreads();
  const Tile& tile = shared.tile;
  const int count = tile.end - tile.begin;
  DotSums& sums = shared.matching.sums;
  if (count > 0) {
    const auto rows = rows_of<typename Dots::Rows>(p, tile);
    rows.bring();
    rows.await();
    Dots::take(rows, 0, sums);
  }
  __syncthreads();
  if (tid >= kTileRows) return;
  uint64_t* keys = p.keys + keys_before(p, tile);
  const int row = (tile.slot - tile.sequence_slot) * kTileRows + tid;
  if (tid >= count) {
    if (p.layout != Layout::kPacked && row < p.rows) keys[row] = 0;
    return;
  }
  const auto may_merge = [&](int r) { return p.mergeable == nullptr || p.mergeable[tile.first_row + r]; };
  uint64_t key = 0;
  if (row == 0) {
    key = static_cast<uint64_t>(p.promise.of(tile.sequence));
  } else if (may_merge(row) && may_merge(row - 1)) {
    const auto norm = [&](int r) {
      const float squared = r < 0 ? Dots::square(sums, r - Dots::first_met(0)) : Dots::dot(sums, 0, r, 0);
      return is_finite(squared) ? squared : HUGE_VALF;
    };
    key = key_of(link_of(Dots::dot(sums, 0, tid, 1), norm(tid), norm(tid - 1)));
  }
  keys[row] = key;
}

}  // namespace affinity_pool::cuda
