// Affinity Pooling as one launch: similarities, the scan over groups and the means; torch-free.
//
// Mapping. A tile is eight consecutive rows of one sequence, a block of 64 to 128 threads. Tiles begin where sequences
// begin, so a result knows nothing of batch mates; the threads of a block follow from the width of a row, so a dot
// product knows nothing of the call. Packed, sequence b owns the slots from bounds[b] / 8 + b on, at least one; padded,
// every sequence owns as many as its width needs. The grid follows from the shapes, the host reads nothing back.
//
// A block takes its slot from a counter, not from blockIdx, and waits for lower slots only: whatever the order in which
// blocks are started, the ones waited for have started. It then
//   1. brings its rows, and as many of the window before them as fit, to shared memory with asynchronous copies;
//                                                                                                         rows.cuh
//   2. takes dot products, pass by pass, until each row has its nearest match k(t);          dots.cuh,
//   nearest_match.cuh
//   3. publishes its eight k(t), looks back for the groups before it and publishes its own prefix;        scan.cuh
//   4. writes the means of the groups that end in it, from shared memory, and hands on what does not end. means.cuh
// Right-aligned results need the number of groups first. There a sequence's slots are drawn twice: once for 1 to 3, and
// once, behind them, for 4, when the rows are still in L2.
//
// Traffic. x comes from memory once and values goes there once. L2 serves the window's rows before each tile once more
// (11 rows for 8 at window 3), up to seven rows of a group that began in another tile, and the sums of groups of more
// than eight, in float32. A padded result has as many rows as its input: a tile whose rows merge writes the zeros.
//
// Determinism. No atomics but the counter of slots. Every sum has an order that its own rows decide.
//
// If a number of rows is promised, k(t) is known when the kernel starts (links.cuh), and stage 2 is a load.
//
// Workspace: the counter and 28 bytes a slot, zero before the first launch ever. The counter's upper half is the number
// of launches that have used the workspace, so their tags differ and nothing has to be cleared between them: the block
// that draws the last slot begins the next number. Launches that share one must not overlap: one a stream, or a graph.
#pragma once

#include "means.cuh"
#include "params.h"
#include "rows.cuh"
#include "scan.cuh"

namespace affinity_pool::cuda {

struct Tile {
  int slot, sequence, sequence_slot;  // sequence_slot: of the sequence's first tile
  int begin, end;                     // rows of the sequence
  int length;
  int64_t first_row;  // of the sequence, in segment_ids and mergeable
  uint32_t tag;
  bool scans, averages;
};

struct Shared {
  Tile tile;
  Matching matching;
  TileMatches k;
  Prefix before;    // of a tile that another block has scanned
  uint32_t groups;  // and the groups of its sequence
  LookBack look_back;
  Carried carried;
};

constexpr int64_t kRowsAt = (sizeof(Shared) + kChunkBytes - 1) / kChunkBytes * kChunkBytes;
static_assert(kRowsAt <= 4096, "three tiles of 64 KB and this must fit in 227 KB");
AP_HOST_DEVICE int64_t shared_bytes(int kept_rows, int chunks) {
  return kRowsAt + static_cast<int64_t>(kept_rows) * kept_stride_of(chunks) * kChunkBytes;
}

AP_DEVICE int clamped(int v, int low, int high) { return v < low ? low : v > high ? high : v; }

// The sequence that owns a packed slot: the last b with bounds[b] / 8 + b <= slot. One warp, 32 places at a time.
AP_DEVICE int find_sequence(const Params& p, int slot, int lane) {
  int low = 0, high = p.batch;
  while (high - low > 1) {
    const int step = (high - low + 31) / 32, b = low + lane * step;
    const bool before = b < high && clamped(p.bounds[b], 0, p.rows) / kTileRows + b <= slot;
    const uint32_t ballot = __ballot_sync(kAllLanes, before);
    low += ballot == 0 ? 0 : (31 - __clz(static_cast<int>(ballot))) * step;
    high = low + step < high ? low + step : high;
  }
  return low;
}

// What a slot is, for a whole warp. Bounds that make no sense are clamped: rows stay inside x.
AP_DEVICE Tile tile_at(const Params& p, int slot, int lane) {
  Tile tile{};
  tile.scans = tile.averages = true;
  if (p.layout == Layout::kPacked) {
    tile.sequence = p.bounds == nullptr ? 0 : find_sequence(p, slot, lane);
    const int first = p.bounds == nullptr ? 0 : clamped(p.bounds[tile.sequence], 0, p.rows);
    const int end = p.bounds == nullptr ? p.rows : clamped(p.bounds[tile.sequence + 1], first, p.rows);
    tile.length = end - first;
    tile.sequence_slot = first / kTileRows + tile.sequence;
    tile.first_row = first;
  } else {
    const int tiles = tiles_of(p.rows);
    tile.sequence = slot / tiles;
    tile.length = p.bounds == nullptr ? p.rows : clamped(p.bounds[tile.sequence], 0, p.rows);
    tile.sequence_slot = tile.sequence * tiles;
    const int first = p.layout == Layout::kLeftPadded ? p.rows - tile.length : 0;
    tile.first_row = static_cast<int64_t>(tile.sequence) * p.rows + first;
  }
  tile.slot = slot;
  tile.begin =
      slot < tile.sequence_slot ? tile.length : clamped((slot - tile.sequence_slot) * kTileRows, 0, tile.length);
  tile.end = clamped(tile.begin + kTileRows, 0, tile.length);
  return tile;
}

// Draws a slot, for a whole warp.
AP_DEVICE Tile draw_tile(const Params& p) {
  const int lane = threadIdx.x % 32;
  uint64_t drawn = 0;
  if (lane == 0) {
    drawn = fetch_add_relaxed(p.slots_drawn, 1);
    if (static_cast<uint32_t>(drawn) == gridDim.x - 1) {
      const uint32_t launches = static_cast<uint32_t>(drawn >> 32) + 1;
      store_relaxed(p.slots_drawn, static_cast<uint64_t>(launches == kTags ? 0 : launches) << 32);
    }
  }
  int slot = __shfl_sync(kAllLanes, static_cast<int>(static_cast<uint32_t>(drawn)), 0);
  const uint32_t tag = __shfl_sync(kAllLanes, static_cast<uint32_t>(drawn >> 32), 0) + 1;
  bool scans = true, averages = true;
  if (p.layout == Layout::kLeftPadded) {
    const int tiles = tiles_of(p.rows), turn = slot / tiles;
    scans = turn % 2 == 0;
    averages = !scans;
    slot = turn / 2 * tiles + slot % tiles;
  }
  Tile tile = tile_at(p, slot, lane);
  tile.tag = tag;
  tile.scans = scans;
  tile.averages = averages;
  return tile;
}

// Place of a sequence's first row among keys and k(t), where padding comes last.
AP_DEVICE int64_t keys_before(const Params& p, const Tile& tile) {
  return p.layout == Layout::kPacked ? tile.first_row : static_cast<int64_t>(tile.sequence) * p.rows;
}

template <class Rows>
AP_DEVICE Rows rows_of(const Params& p, const Tile& tile) {
  using Element = typename Rows::Element;
  Rows rows;
  const int64_t left = p.layout == Layout::kLeftPadded ? p.rows - tile.length : 0;
  const int64_t offset = p.layout == Layout::kPacked
                             ? (tile.first_row + tile.begin) * p.row_stride
                             : tile.sequence * p.sequence_stride + (left + tile.begin) * p.row_stride;
  rows.first = static_cast<const Element*>(p.x) + offset;
  rows.stride = p.row_stride;
  rows.dim = p.dim;
  rows.chunks = chunks_of(p.dim, sizeof(Element));
  rows.end = tile.end - tile.begin;
  rows.from = rows.end == 0 ? 0 : -(tile.begin < p.window ? tile.begin : p.window);
  rows.kept_from = tile.scans ? kTileRows - p.kept_rows : kTileRows;
  rows.kept_stride = kept_stride_of(rows.chunks);
  rows.kept = reinterpret_cast<uint4*>(dynamic_shared_memory() + kRowsAt);
  return rows;
}

template <class F, bool kAligned>
AP_DEVICE void write_zeros(const Params& p, const TileRows<F, kAligned>& rows, int64_t row) {
  auto* value = static_cast<typename F::Element*>(p.values) + row * p.dim;
  for (int c = threadIdx.x; c < rows.chunks; c += blockDim.x) Chunks<F, kAligned>::store(value, c, p.dim, {0, 0, 0, 0});
  if (threadIdx.x == 0) p.counts[row] = 0;
}

// Zeros where a padded result has no group, and -1 where it has no row. Row by row: for each of the tile's rows that
// joined a group there is one row of `values` to fill, and one for each row of padding.
template <class F, bool kAligned>
AP_DEVICE void fill_padding(const Params& p, const Tile& tile, const TileRows<F, kAligned>& rows, int joined_before,
                            int joined) {
  const int64_t first = static_cast<int64_t>(tile.sequence) * p.rows;
  const int place = (tile.slot - tile.sequence_slot) * kTileRows;
  const int padding = clamped(place + kTileRows, 0, p.rows) - clamped(place, tile.length, p.rows);
  const bool left = p.layout == Layout::kLeftPadded;
  const int64_t merged_row =
      first + (left ? p.rows - tile.length + joined_before : tile.length - joined_before - joined);
  const int64_t padding_row = first + clamped(place, tile.length, p.rows) - (left ? tile.length : 0);
  for (int i = 0; i < joined + (padding > 0 ? padding : 0); ++i) {
    const int64_t row = i < joined ? merged_row + i : padding_row + i - joined;
    write_zeros(p, rows, row);
    if (threadIdx.x == 0 && i >= joined) p.segment_ids[row] = -1;
  }
}

// Bit r: row r opens a group.
AP_DEVICE uint32_t openings(TileMatches k, uint32_t open_rows, int window) {
  OpenGroup group{window, open_rows < static_cast<uint32_t>(window) ? static_cast<int>(open_rows) : window};
  uint32_t opens = 0;
#pragma unroll
  for (int r = 0; r < kTileRows; ++r)
    if (k[r] != 0 && group.opens(k[r])) opens |= 1u << r;
  return opens;
}

// Stages 1 to 3: the prefix at the beginning of a tile. Leaves its k(t) in `shared`.
template <class Dots>
AP_DEVICE Prefix scan_tile(const Params& p, const Tile& tile, Shared& shared) {
  const int tid = threadIdx.x, lane = tid % 32, count = tile.end - tile.begin;
  TileStatus& status = p.tiles[tile.slot];
  uint32_t k = 0;
  const auto rows = [&] { return rows_of<typename Dots::Rows>(p, tile); };
  const bool is_known = p.nearest != nullptr;
  if (count > 0) rows().bring();
  if (is_known) {
    // Rows that bounds without sense leave out of all sequences have no k(t): whatever is there may not be a match.
    if (tid < count) k = p.nearest[keys_before(p, tile) + tile.begin + tid] == 1 ? 1 : kNone;
  } else if (count > 0) {
    rows().await();
    const auto may_merge = [&](int row) {
      return p.mergeable == nullptr || p.mergeable[tile.first_row + tile.begin + row];
    };
    k = nearest_match<Dots>(rows, rows().from, count, MatchRule{p.threshold}, p.window, may_merge, shared.matching);
  }
  if (tid < 32) {
    k <<= TileMatches::kBits * (lane % TileMatches::kRowsAWord);
    k |= __shfl_xor_sync(kAllLanes, k, 1);
    k |= __shfl_xor_sync(kAllLanes, k, 2);
    const TileMatches matches{{k, __shfl_sync(kAllLanes, k, TileMatches::kRowsAWord)}};
    if (lane == 0) {
      shared.k = matches;
      publish(&status.matches, tile.tag, matches.packed());
    }
  }
  if (is_known) rows().await();  // while others look at what was published
  const int first_slot = p.layout == Layout::kPacked ? 0 : tile.sequence_slot;
  const Prefix before = look_back(p, tile.slot, first_slot, tile.tag, shared.look_back);
  if (tid == 0) {
    const uint32_t opens = openings(shared.k, before.open_rows, p.window);
    const uint32_t open_rows = opens == 0 ? before.open_rows + count : count + __clz(static_cast<int>(opens)) - 31;
    publish(&status.opened, tile.tag, before.opened + __popc(opens));
    publish(&p.open_rows[tile.slot], tile.tag, open_rows);
  }
  return before;
}

// The same for a tile that another block scans, and the groups of its sequence.
AP_DEVICE Prefix await_scan(const Params& p, const Tile& tile, int final_slot, Shared& shared) {
  if (threadIdx.x == 0) {
    shared.groups = await_value(&p.tiles[final_slot].opened, tile.tag);
    shared.k = TileMatches::unpack(await_word(&p.tiles[tile.slot].matches, tile.tag));
    shared.before = {0, 0};
    if (tile.begin > 0)
      shared.before = {await_value(&p.tiles[tile.slot - 1].opened, tile.tag),
                       await_value(&p.open_rows[tile.slot - 1], tile.tag)};
  }
  __syncthreads();
  return shared.before;
}

// Stage 4, for a tile that has rows. `first_id` is the id of the first group that it opens. Returns whether it has
// handed on a sum.
template <class F, bool kAligned>
AP_DEVICE bool write_groups(const Params& p, const Tile& tile, const TileRows<F, kAligned>& rows, uint32_t open_rows,
                            int64_t first_id, uint32_t opens, Shared& shared) {
  const int tid = threadIdx.x, count = rows.end;
  const uint32_t ends = opens | (tile.end == tile.length ? 1u << count : 0u);  // bit r: a group ends before row r
  const int before = tile.begin == 0 ? 0 : clamped(static_cast<int>(open_rows), 0, tile.begin);
  const int64_t first_value = p.layout == Layout::kPacked ? 0 : static_cast<int64_t>(tile.sequence) * p.rows;
  const int64_t open_group = first_value + first_id - 1;
  // Of the call: bounds without sense may promise more rows than there is room for, or begin in the midst of a group.
  const auto has_room = [&](int64_t group) { return group >= first_value && group < first_value + p.value_rows; };
  if (tid < count) {
    const int opened = __popc(opens & ((2u << tid) - 1));
    const int id = static_cast<int>(first_id) - 1 + opened;
    p.segment_ids[tile.first_row + tile.begin + tid] = id < p.value_rows ? id : p.value_rows - 1;
  }
  if (tid <= count && (ends >> tid & 1) != 0 && tile.begin + tid > 0) {
    const uint32_t earlier = ends & ((1u << tid) - 1);
    const int began = earlier == 0 ? -before : 31 - __clz(static_cast<int>(earlier));
    const int64_t group = open_group + __popc(earlier);
    if (has_room(group)) p.counts[group] = tid - began;
  }

  auto* values = static_cast<typename F::Element*>(p.values);
  int64_t group = open_group;
  int begin = -before;
  for (uint32_t to_come = ends;; to_come &= to_come - 1, ++group) {
    const bool closed = to_come != 0;
    const int end = closed ? __ffs(static_cast<int>(to_come)) - 1 : count;
    const bool exists = begin < end && (!closed || has_room(group));
    // Only what begins before the tile, or with it, can be longer than a segment, or fill one and go on.
    const int segment_end = begin <= 0 ? kTileRows - 1 - -begin % kTileRows : count;
    if (closed ? end - begin > kTileRows : segment_end < end) {
      Carried& carried = shared.carried;
      __syncthreads();  // two groups can be so: one that ends where the tile begins, and the next
      if (tid == 0) plan(carried, tile.begin + begin, tile.begin, tile.sequence_slot, tile.slot, segment_end < end);
      __syncthreads();
      const int terms = carried.joining + (closed ? carried.earlier : 0);
      for (int i = tid; i < terms; i += blockDim.x) {
        const int from = i < carried.joining ? carried.join[i] : carried.add[i - carried.joining];
        while (load_acquire(&p.flags[from]) != tile.tag) pause(20);
      }
      __syncthreads();
      const SumRows<typename F::Element> sums{p.sums, p.sums_stride};
      if (!closed)
        write_long(rows, carried, segment_end + 1, segment_end, nullptr, 1, sums, tile.slot);
      else if (exists)
        write_long(rows, carried, end, segment_end, values + group * p.dim, end - begin, sums, tile.slot);
      if (!closed) return true;
    } else if (closed && exists) {
      write_short(rows, begin, end, values + group * p.dim);
    }
    if (!closed) return false;
    begin = end;
  }
}

// The body of a block. Dots: how rows are multiplied.
template <class Dots>
AP_DEVICE void pool_tile(const Params& p) {
  Shared& shared = *reinterpret_cast<Shared*>(dynamic_shared_memory());
  const int tid = threadIdx.x;
  if (tid < 32) {
    const Tile drawn = draw_tile(p);
    if (tid == 0) shared.tile = drawn;
  }
  __syncthreads();
  const Tile& tile = shared.tile;
  const bool packed = p.layout == Layout::kPacked;
  const int final_slot = tile.sequence_slot + (tile.length > 0 ? tiles_of(tile.length) - 1 : 0);
  if (!packed && tile.slot > final_slot) {
    if (tile.averages) fill_padding(p, tile, rows_of<typename Dots::Rows>(p, tile), 0, 0);
    return;
  }

  const Prefix before = tile.scans ? scan_tile<Dots>(p, tile, shared) : await_scan(p, tile, final_slot, shared);
  if (!tile.averages) return;
  const auto rows = rows_of<typename Dots::Rows>(p, tile);  // anew: held meanwhile, it would cost 12 registers
  const uint32_t opens = openings(shared.k, before.open_rows, p.window);
  const int opened = __popc(opens), count = rows.end;
  const int64_t shift = p.layout == Layout::kLeftPadded ? p.rows - static_cast<int64_t>(shared.groups) : 0;
  const bool hands_on =
      count > 0 && write_groups(p, tile, rows, before.open_rows, before.opened + shift, opens, shared);
  if (!packed) fill_padding(p, tile, rows, tile.begin - static_cast<int>(before.opened), count - opened);
  const bool is_last = packed && tile.slot == static_cast<int>(gridDim.x) - 1;
  const int all = clamped(static_cast<int>(before.opened) + opened, 0, p.value_rows);
  if (is_last && p.fills_value_rows)
    for (int row = all; row < p.value_rows; ++row) write_zeros(p, rows, row);
  if (tid == 0) {
    if (packed && tile.slot == tile.sequence_slot) p.lengths[tile.sequence] = static_cast<int>(before.opened);
    if (is_last) p.lengths[p.batch] = all;
    if (!packed && tile.slot == final_slot) p.lengths[tile.sequence] = static_cast<int>(before.opened) + opened;
  }
  if (hands_on) {
    __syncthreads();
    if (tid == 0) store_release(&p.flags[tile.slot], tile.tag);
  } else if (tid == 0) {
    store_relaxed(&p.flags[tile.slot], tile.tag);
  }
}

}  // namespace affinity_pool::cuda
