// k(t): the distance from a row to the nearest row before it that it matches. Warp 0 decides, for eight rows by four
// lags at a time, and asks for another pass of dot products until each row has its match or its window is at its end.
#pragma once

#include "dots.cuh"

namespace affinity_pool::cuda {

constexpr uint32_t kNone = 63;  // of 6 bits: no match

// A matrix instruction may cut what overflows to the largest float.
AP_DEVICE bool is_finite(float squared_norm) { return squared_norm < 3.402823466e38f; }

struct Matching {
  DotSums sums;
  float norms[kMaxWindow + kTileRows];  // squared norms of the rows before the tile and of its own; Inf: cannot match
};

// Lane r of warp 0 returns k(t) of row r, and other lanes 0. The tile has rows 0..count, and `from` on are those before
// it. `rows` makes them anew for each pass: held between passes, they would cost a dozen registers.
template <class Dots, class MakeRows, class MayMerge>
AP_DEVICE uint32_t nearest_match(MakeRows rows, int from, int count, MatchRule match, int window, MayMerge may_merge,
                                 Matching& shared) {
  const int tid = threadIdx.x;
  const bool decides = tid < 32;
  float* norm = shared.norms + kMaxWindow;  // of row 0
  const auto note_norm = [&](int row, float squared) {
    norm[row] = row >= from && row < count && is_finite(squared) && may_merge(row) ? squared : HUGE_VALF;
  };
  constexpr int kTogether = Dots::kLags < 4 ? Dots::kLags : 4;
  uint32_t k = kNone;
  for (int pass = 0;; ++pass) {
    Dots::take(rows(), pass, shared.sums);
    __syncthreads();
    bool more = false;
    if (decides) {
      const int lane = opaque(tid);  // else what follows from it is held in registers while dot products are taken
      const int row = lane / kTogether % kTileRows, met = Dots::first_met(pass) + lane;
      if (lane < Dots::kLags && met < 0 && met >= -window) note_norm(met, Dots::square(shared.sums, lane));
      if (pass == 0 && lane < kTileRows) note_norm(lane, Dots::dot(shared.sums, 0, lane, 0));
      __syncwarp();
      for (int lag = Dots::first_lag(pass); lag <= Dots::last_lag(pass) && lag <= window; lag += kTogether) {
        const int distance = lag + lane % kTogether;
        const bool asks = lane < kTileRows * kTogether && distance > 0 && distance <= window && row < count &&
                          row - distance >= from && Dots::knows(pass, row, distance);
        const bool matches =
            asks && match(Dots::dot(shared.sums, pass, row, distance), norm[row], norm[row - distance]);
        const uint32_t found =
            __ballot_sync(kAllLanes, matches) >> (lane % kTileRows * kTogether) & ((1u << kTogether) - 1);
        if (k == kNone && found != 0) k = static_cast<uint32_t>(lag + __ffs(static_cast<int>(found)) - 1);
      }
      more = lane < count && k == kNone && Dots::known_of(pass, lane) < window;
    }
    if (!__syncthreads_or(more)) return decides && tid < count ? k : 0;
  }
}

}  // namespace affinity_pool::cuda
