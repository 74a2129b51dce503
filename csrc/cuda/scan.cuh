// The scan over tiles, inside the launch: how many groups have been opened before a tile, and where the open one began.
//
// A tile publishes its eight k(t) as soon as it knows them and its prefix (groups opened up to its end, rows of the
// group open there) as soon as it knows that: words that carry the launch's tag, so a word is valid by itself and
// relaxed loads and stores will do. Looking back, a thread watches one earlier tile, the last thread the nearest. The
// anchor is the nearest tile with a prefix; a block is done when every tile behind it has published its k(t), whatever
// those before it do. What lies between is composed: a tile maps the state it is entered with (the open group's length,
// capped at the window) to the state it leaves, the groups it opens and the row of the last of them; maps compose
// associatively. A lane holds the map of one tile for one state, so a warp walks through 32 / states tiles at a time
// and composes them with one shuffle a level. Cost is bounded for any data: some 400 instructions for 32 tiles at
// window 3, 2500 at window 32; none if the nearest tile is the anchor.
//
// Traffic. What is polled is 16 bytes a tile. In a grid that fits on the device at once, time is short: all threads
// look, again and again. In a larger one other blocks fill the time, and what is polled costs them: the nearest 32
// tiles come first, those beyond only if none of them has a prefix, and between two looks a block sleeps for half of
// what a word takes from one block to another.
//
// A tile is eight bytes to others, whatever the window, and empty places in it are zero: the identity.
#pragma once

#include "nearest_match.cuh"

namespace affinity_pool::cuda {

constexpr unsigned kManyBlocks = 512;  // 396 are resident on an H100, at three a multiprocessor

// Words are read by the launch that wrote them: tags differ from launch to launch, and none is 0.
constexpr int kTagAt = 48;
AP_DEVICE void publish(uint64_t* word, uint32_t tag, uint64_t value) {
  store_relaxed(word, static_cast<uint64_t>(tag) << kTagAt | value);
}
AP_DEVICE bool is_of(uint64_t word, uint32_t tag) { return word >> kTagAt == tag; }
AP_DEVICE uint64_t await_word(const uint64_t* word, uint32_t tag) {
  for (;;) {
    const uint64_t v = load_relaxed(word);
    if (is_of(v, tag)) return v;
    pause(20);
  }
}
AP_DEVICE uint32_t await_value(const uint64_t* word, uint32_t tag) {
  return static_cast<uint32_t>(await_word(word, tag));
}

// k(t) of the rows of a tile, four to a word.
struct TileMatches {
  static constexpr int kBits = 6, kRowsAWord = kTileRows / 2, kWordBits = kBits * kRowsAWord;
  uint32_t word[2];
  AP_DEVICE static TileMatches unpack(uint64_t bits) {
    constexpr uint32_t kMask = (1u << kWordBits) - 1;
    return {{static_cast<uint32_t>(bits) & kMask, static_cast<uint32_t>(bits >> kWordBits) & kMask}};
  }
  AP_DEVICE uint64_t packed() const { return static_cast<uint64_t>(word[1]) << kWordBits | word[0]; }
  AP_DEVICE uint8_t operator[](int r) const {
    return static_cast<uint8_t>(word[r / kRowsAWord] >> (kBits * (r % kRowsAWord)) & ((1u << kBits) - 1));
  }
};

struct Prefix {
  uint32_t opened;     // groups opened before this point, in the sequence or, packed, in the call
  uint32_t open_rows;  // of the group that is open here
};

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

// Without a branch: in a warp, lanes differ in all of it.
AP_DEVICE Passage walk(TileMatches k, int state, int window, int rows_before) {
  int length = state + 1, opened = 0, last = 0;
#pragma unroll
  for (int r = 0; r < kTileRows; ++r) {
    const int nearest = k[r];
    const bool opens = nearest > length;  // as OpenGroup has it; where there is no row, 0 opens nothing
    const int longer = length < window ? length + 1 : window;
    length = opens ? 1 : nearest == 0 ? length : longer;
    opened += opens;
    last = opens ? rows_before + r + 1 : last;
  }
  return {static_cast<uint32_t>(last) * Passage::kLast + static_cast<uint32_t>(opened) * Passage::kOpened +
          static_cast<uint32_t>(length - 1)};
}

// Of the 32 tiles that a warp watches: whose k(t) are there, and whose prefix.
struct Seen {
  uint32_t matches, prefixes;
};

struct LookBack {
  Seen seen[2][kMaxWarps];  // of this look and of the last one
  Passage passage[kMaxWarps][32];
  Prefix prefix;
};

constexpr int kNotYet = -1, kBeyond = -2;

// The thread that watches the anchor, from what `reach` warps have seen; kBeyond: they have seen all but an anchor.
AP_DEVICE int anchor_of(const Seen* seen, int warps, int reach) {
  for (int w = warps - 1; w >= warps - reach; --w) {
    const uint32_t prefixes = seen[w].prefixes, unknown = ~seen[w].matches;
    const int last = 31 - __clz(static_cast<int>(prefixes));  // -1 if there is none
    const uint32_t behind = prefixes == 0 ? unknown : unknown >> last >> 1;
    if (behind != 0) return kNotYet;
    if (prefixes != 0) return w * 32 + last;
  }
  return kBeyond;
}

// The prefix at the beginning of tile `slot`. Tiles before `first` do not concern it.
AP_DEVICE Prefix look_back(const Params& p, int slot, int first, uint32_t tag, LookBack& shared) {
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32, threads = blockDim.x, warps = threads / 32;
  const int watched = slot - threads + tid;  // the last thread watches the nearest tile
  const bool many = gridDim.x > kManyBlocks;
  TileMatches k{{0, 0}};
  uint32_t opened = 0;
  bool has_prefix = watched < first, has_matches = has_prefix;
  int anchor, reach = many ? 1 : warps;
  for (int look = 0;; ++look) {
    if (warp >= warps - reach && !has_prefix) {
      uint64_t matches, prefix;
      load_relaxed(&p.tiles[watched].matches, matches, prefix);
      has_prefix = is_of(prefix, tag);
      if (has_prefix) opened = static_cast<uint32_t>(prefix);
      if (is_of(matches, tag)) k = TileMatches::unpack(matches);
      has_matches = has_prefix || is_of(matches, tag);
    }
    const Seen seen{__ballot_sync(kAllLanes, has_matches), __ballot_sync(kAllLanes, has_prefix)};
    if (lane == 0) shared.seen[look % 2][warp] = seen;
    __syncthreads();
    anchor = anchor_of(shared.seen[look % 2], warps, reach);
    if (anchor >= 0) break;
    if (anchor == kBeyond && reach < warps)
      ++reach;
    else
      pause(many ? 300 : 20);
  }

  if (tid == anchor) shared.prefix = {opened, watched < first ? 0 : await_value(&p.open_rows[watched], tag)};
  if (anchor == threads - 1) {
    __syncthreads();
    return shared.prefix;
  }
  if (tid <= anchor) k = {{0, 0}};
  const int window = p.window;
  if (warp >= anchor / 32) {
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
  }
  __syncthreads();

  const Prefix prefix = shared.prefix;
  const uint32_t rows = prefix.open_rows < 1 ? 1 : prefix.open_rows;
  Passage whole{rows < static_cast<uint32_t>(window) ? rows - 1 : static_cast<uint32_t>(window - 1)};
  for (int w = anchor / 32; w < warps; ++w) whole = whole.then(shared.passage[w][whole.state()]);
  const int end = threads * kTileRows;
  const uint32_t since =
      static_cast<uint32_t>(whole.last() > 0 ? end - (whole.last() - 1) : end - (anchor + 1) * kTileRows);
  return {prefix.opened + whole.opened(), whole.last() > 0 ? since : prefix.open_rows + since};
}

}  // namespace affinity_pool::cuda
