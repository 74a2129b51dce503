// What the host hands to the kernel, and the geometry that follows from shapes alone: no torch, no CUDA.
#pragma once

#include "../algebra.h"

namespace affinity_pool::cuda {

constexpr int kTileRows = 8;
constexpr int kMaxWarps = 4;
constexpr int kChunkBytes = 16;
constexpr unsigned kAllLanes = 0xffffffffu;

// What a tile tells those behind it: words of which the upper 16 bits are the launch's tag. The first two are polled.
struct TileStatus {
  uint64_t matches;  // k(t) of eight rows, 6 bits each
  uint64_t opened;   // groups, up to the tile's end
};

// Tags of launches that share a workspace are 1..kTags and then 1 again. A tile that no launch has used for so long
// must have been zeroed meanwhile.
constexpr uint32_t kTags = 65535;

// The kernels that have rows to read: pooling.cuh, links.cuh.
enum class Step { kPool, kLink };

enum class Layout { kPacked, kPadded, kLeftPadded };

struct Params {
  const void* x;
  int64_t row_stride, sequence_stride;  // elements; sequence_stride: padded only
  int dim, batch;
  int rows;               // packed: of x in all, padded: of a sequence, padding included
  const int* bounds;      // packed: cu_seqlens, padded: lengths; null: one sequence, or no padding
  const bool* mergeable;  // one flag a row, or null
  Layout layout;
  double threshold;
  int window;

  // If a number of rows is promised (links.cuh, select.cuh):
  Promise promise;
  uint64_t* keys;          // of the links
  const uint8_t* nearest;  // k(t), which is then not looked for; else null

  void* values;
  int value_rows;         // packed: of values in all, padded: of a sequence
  bool fills_value_rows;  // packed: with zeros, if there are fewer groups
  int* lengths;           // packed: cu_seqlens of the groups
  int* segment_ids;
  int* counts;

  uint64_t* slots_drawn;
  TileStatus* tiles;
  uint64_t* open_rows;  // of the group that is open at the tile's end, with the tag
  uint32_t* flags;      // the tag: the tile's row of sums is there
  float* sums;          // a row of float32 a slot
  int64_t sums_stride;

  int kept_rows;  // of the tile, and before it, in shared memory
};

// What the selection works on. A key that is less than kLeastKey begins a run and says how many rows are promised.
struct Selection {
  const uint64_t* keys;
  uint8_t* nearest;
  int64_t rows;
  double share;

  AP_HOST_DEVICE int64_t groups_of(int64_t run, uint64_t promised) const {
    return groups_of_run(run, static_cast<int64_t>(promised), share);
  }
};
constexpr uint64_t kLeastKey = 0x000fffffffffffffu;  // of minus infinity

// Slots of a call. A block draws one; if results are left-padded each is drawn twice.
AP_HOST_DEVICE int tiles_of(int rows) { return (rows + kTileRows - 1) / kTileRows; }
AP_HOST_DEVICE int64_t slots_of(Layout layout, int64_t batch, int rows) {
  return layout == Layout::kPacked ? rows / kTileRows + batch : batch * tiles_of(rows);
}

AP_HOST_DEVICE int64_t blocks_of(const Params& p, Step step = Step::kPool) {
  const bool twice = step == Step::kPool && p.layout == Layout::kLeftPadded;
  return (twice ? 2 : 1) * slots_of(p.layout, p.batch, p.rows);
}

// Chunks of a row, and threads of a block: a function of the row's width alone, for sums depend on it.
AP_HOST_DEVICE int chunks_of(int dim, int element_bytes) {
  return static_cast<int>((static_cast<int64_t>(dim) * element_bytes + kChunkBytes - 1) / kChunkBytes);
}
// Floats of a tile's row of sums: a sum for each element of whole chunks.
inline int64_t sums_stride_of(int dim, int element_bytes) {
  return static_cast<int64_t>(chunks_of(dim, element_bytes)) * (kChunkBytes / element_bytes);
}
// From one row to the next in shared memory: four chunks of each of eight rows lie in different banks.
AP_HOST_DEVICE int kept_stride_of(int chunks) { return chunks + (4 - chunks % 8 + 8) % 8; }
AP_HOST_DEVICE int threads_of(int chunks) {
  const int warps = (chunks + 31) / 32;
  return 32 * (warps < 2 ? 2 : warps < kMaxWarps ? warps : kMaxWarps);
}

// Memory of a workspace for that many slots, and where in it a call finds what: a cache line for the counter, then the
// tiles, the rows of their open groups and the flags.
inline int64_t workspace_bytes(int64_t slots) {
  return 128 + slots * static_cast<int64_t>(sizeof(TileStatus) + sizeof(uint64_t) + sizeof(uint32_t));
}
inline void lend_workspace(Params& p, void* memory, int64_t slots) {
  p.slots_drawn = static_cast<uint64_t*>(memory);
  p.tiles = reinterpret_cast<TileStatus*>(static_cast<char*>(memory) + 128);
  p.open_rows = reinterpret_cast<uint64_t*>(p.tiles + slots);
  p.flags = reinterpret_cast<uint32_t*>(p.open_rows + slots);
}

// Whether rows are whole chunks at whole addresses; else they are read element by element.
inline bool is_aligned(const Params& p, int element_bytes) {
  const auto whole = [](uint64_t bytes) { return bytes % kChunkBytes == 0; };
  return whole(reinterpret_cast<uintptr_t>(p.x)) && whole(reinterpret_cast<uintptr_t>(p.values)) &&
         whole(static_cast<uint64_t>(p.dim) * element_bytes) && whole(p.row_stride * element_bytes) &&
         whole(p.sequence_stride * element_bytes);
}

}  // namespace affinity_pool::cuda
