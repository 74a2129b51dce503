// The scan over tiles, inside the launch: how many groups have been opened before a tile, and where the open one began.
//
// A tile publishes its eight k(t) as soon as it knows them and its prefix (groups opened up to its end, rows of the
// group open there) as soon as it knows that; both are 64-bit words that carry the launch's tag, so a word is valid by
// itself and relaxed loads and stores will do. Looking back, a block watches one earlier tile per thread until each has
// published something and one of them a prefix, the anchor. What lies between is composed: a tile maps the state it is
// entered with (the open group's length, capped at the window) to the state it leaves, the groups it opens and the row
// of the last of them; maps compose associatively. A lane holds the map of one tile for one state, so a warp walks
// through 32 / states tiles at a time and composes them with one shuffle a level. Cost is bounded for any data: some
// 400 instructions for 32 tiles at window 3, 2500 at window 32.
//
// A tile is eight bytes to others, whatever the window, and empty places in it are zero: the identity.
#pragma once

#include "rows.cuh"

namespace affinity_pool::cuda {

// Words are read by the launch that wrote them: tags differ from launch to launch, and none is 0.
AP_DEVICE void publish(uint64_t* word, uint32_t tag, uint32_t value) {
  store_relaxed(word, static_cast<uint64_t>(tag) << 32 | value);
}
AP_DEVICE bool published(const uint64_t* word, uint32_t tag, uint32_t& value) {
  const uint64_t v = load_relaxed(word);
  value = static_cast<uint32_t>(v);
  return v >> 32 == tag;
}

// k(t) of the rows of a tile, a byte each.
struct TileMatches {
  uint32_t word[2];
  AP_DEVICE uint8_t operator[](int r) const { return static_cast<uint8_t>(word[r / 4] >> (8 * (r % 4))); }
};

AP_DEVICE bool read_matches(const TileStatus* tile, uint32_t tag, TileMatches& k) {
  return published(&tile->nearest_match[0], tag, k.word[0]) && published(&tile->nearest_match[1], tag, k.word[1]);
}

struct Prefix {
  uint32_t opened;     // groups opened before this point, in the sequence or, packed, in the call
  uint32_t open_rows;  // of the group that is open here
};

AP_DEVICE bool read_prefix(const TileStatus* tile, uint32_t tag, Prefix& prefix) {
  return published(&tile->opened, tag, prefix.opened) && published(&tile->open_rows, tag, prefix.open_rows);
}

// What a run of rows does to the open group, for one state on entry: 5 bits of state on exit, from 0 for one row on,
// 12 bits of groups opened, 12 bits of the last row that opened one, counted from 1 at the start of the look-back.
struct Passage {
  uint32_t bits;
  static constexpr uint32_t kOpened = 1u << 5, kLast = 1u << 17;
  static_assert(kMaxWindow <= 32 && kMaxWarps * 32 * kTileRows < 4096);

  AP_DEVICE int state() const { return static_cast<int>(bits % kOpened); }
  AP_DEVICE uint32_t opened() const { return bits / kOpened % (kLast / kOpened); }
  AP_DEVICE int last() const { return static_cast<int>(bits / kLast); }
  AP_DEVICE Passage then(Passage next) const {
    const uint32_t last_from = next.last() > 0 ? next.bits : bits;
    return {last_from / kLast * kLast + (opened() + next.opened()) * kOpened + static_cast<uint32_t>(next.state())};
  }
};

AP_DEVICE Passage walk(TileMatches k, int state, int window, int rows_before) {
  OpenGroup group{window, state + 1};
  uint32_t opened = 0, last = 0;
#pragma unroll
  for (int r = 0; r < kTileRows; ++r) {
    if (k[r] == 0) continue;
    if (group.opens(k[r])) {
      ++opened;
      last = static_cast<uint32_t>(rows_before + r + 1);
    }
  }
  return {last * Passage::kLast + opened * Passage::kOpened + static_cast<uint32_t>(group.length - 1)};
}

struct LookBack {
  Passage passage[kMaxWarps][32];
  int anchor[kMaxWarps];
  Prefix prefix;
};

// The prefix at the beginning of tile `slot`. Tiles before `first` do not concern it.
AP_DEVICE Prefix look_back(const TileStatus* tiles, int slot, int first, uint32_t tag, int window, LookBack& shared) {
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32, threads = blockDim.x;
  const int watched = slot - threads + tid;  // the last thread watches the nearest tile
  TileMatches k{{0, 0}};
  Prefix prefix{0, 0};
  bool has_prefix = watched < first, has_matches = false;
  for (;;) {
    while (!has_prefix) {
      has_prefix = read_prefix(&tiles[watched], tag, prefix);
      has_matches = has_matches || has_prefix || read_matches(&tiles[watched], tag, k);
      if (has_matches) break;
      pause();
    }
    if (__syncthreads_or(has_prefix)) break;
  }

  const uint32_t in_warp = __ballot_sync(kAllLanes, has_prefix);
  if (lane == 0) shared.anchor[warp] = in_warp != 0 ? warp * 32 + 31 - __clz(static_cast<int>(in_warp)) : -1;
  __syncthreads();
  int anchor = -1;
  for (int w = 0; w < threads / 32; ++w) anchor = shared.anchor[w] > anchor ? shared.anchor[w] : anchor;
  if (tid == anchor) shared.prefix = prefix;
  if (tid <= anchor) k = {{0, 0}};

  int states = 1;
  while (states < window) states *= 2;
  const int state = lane % states;
  Passage all{static_cast<uint32_t>(state)};
  for (int step = 0; step < states; ++step) {
    const int tile = step * (32 / states) + lane / states;
    const TileMatches its{{__shfl_sync(kAllLanes, k.word[0], tile), __shfl_sync(kAllLanes, k.word[1], tile)}};
    Passage passage = walk(its, state < window ? state : window - 1, window, (warp * 32 + tile) * kTileRows);
    for (int apart = states; apart < 32; apart *= 2) {  // groups of tiles side by side become one
      const int next = lane - state + apart + passage.state();
      passage = passage.then({__shfl_sync(kAllLanes, passage.bits, next)});
    }
    all = all.then({__shfl_sync(kAllLanes, passage.bits, all.state())});
  }
  if (lane < states) shared.passage[warp][lane] = all;
  __syncthreads();

  prefix = shared.prefix;
  const uint32_t rows = prefix.open_rows < 1 ? 1 : prefix.open_rows;
  Passage whole{rows < static_cast<uint32_t>(window) ? rows - 1 : static_cast<uint32_t>(window - 1)};
  for (int w = 0; w < threads / 32; ++w) whole = whole.then(shared.passage[w][whole.state()]);
  const int end = threads * kTileRows;
  const uint32_t since =
      static_cast<uint32_t>(whole.last() > 0 ? end - (whole.last() - 1) : end - (anchor + 1) * kTileRows);
  return {prefix.opened + whole.opened(), whole.last() > 0 ? since : prefix.open_rows + since};
}

}  // namespace affinity_pool::cuda
