// For ctypes: runs the kernel in the emulator on memory that belongs to torch.
#include <cstdlib>
#include <limits>
#include <vector>

#include "kernel.h"

namespace emulator {

using namespace affinity_pool::cuda;

template <class F, bool kAligned>
std::string run_kernel(const Params& params, const Launch& launch);

namespace {

struct Workspace {
  uint64_t slots_drawn = 0xfffffff0ull << 32;  // sixteen launches before their number starts again
  std::vector<TileStatus> tiles;
  std::vector<uint32_t> flags;

  void reserve(size_t slots) {
    if (slots <= tiles.size()) return;
    tiles.assign(slots, TileStatus{});
    flags.assign(slots, 0);
  }
};
Workspace workspace;

}  // namespace

std::string pool(Params p, Dtype dtype, Launch launch) {
  const int64_t slots = slots_of(p.layout, p.batch, p.rows);
  const int element_bytes = dtype == Dtype::kFloat32 ? 4 : 2, chunks = chunks_of(p.dim, element_bytes);
  workspace.reserve(slots);
  p.slots_drawn = &workspace.slots_drawn;
  p.tiles = workspace.tiles.data();
  p.flags = workspace.flags.data();
  p.sums_stride = static_cast<int64_t>(chunks) * (kChunkBytes / element_bytes);
  float* sums = static_cast<float*>(std::aligned_alloc(64, (slots * p.sums_stride * 4 + 63) / 64 * 64));
  for (int64_t i = 0; i < slots * p.sums_stride; ++i) sums[i] = std::numeric_limits<float>::quiet_NaN();
  p.sums = sums;
  launch.grid = static_cast<unsigned>(blocks_of(p));
  launch.block = static_cast<unsigned>(threads_of(chunks));
  launch.shared_bytes = shared_bytes(p.kept_rows, chunks);
  std::string error;
  if (launch.grid > 0) {
    const bool whole = is_aligned(p, element_bytes);
    if (dtype == Dtype::kFloat32)
      error = whole ? run_kernel<Float32, true>(p, launch) : run_kernel<Float32, false>(p, launch);
    else if (dtype == Dtype::kFloat16)
      error = whole ? run_kernel<Float16, true>(p, launch) : run_kernel<Float16, false>(p, launch);
    else
      error = whole ? run_kernel<BFloat16, true>(p, launch) : run_kernel<BFloat16, false>(p, launch);
  }
  if (!error.empty()) workspace = Workspace{};  // left in the middle of a launch
  std::free(sums);
  return error;
}

}  // namespace emulator

extern "C" __attribute__((visibility("default"))) const char* emulator_pool(
    const void* x, int64_t row_stride, int64_t sequence_stride, int dim, int batch, int rows, const int* bounds,
    const bool* mergeable, int layout, double threshold, int window, void* values, int* lengths, int* segment_ids,
    int* counts, int dtype, int kept_rows, unsigned resident, int order, unsigned yield_percent, uint64_t seed) {
  static std::string error;
  emulator::Params p{};
  p.x = x;
  p.row_stride = row_stride;
  p.sequence_stride = sequence_stride;
  p.dim = dim;
  p.batch = batch;
  p.rows = rows;
  p.bounds = bounds;
  p.mergeable = mergeable;
  p.layout = static_cast<affinity_pool::cuda::Layout>(layout);
  p.threshold = threshold;
  p.window = window;
  p.values = values;
  p.lengths = lengths;
  p.segment_ids = segment_ids;
  p.counts = counts;
  p.kept_rows = kept_rows;
  emulator::Launch launch{};
  launch.resident = resident;
  launch.order = static_cast<emulator::Launch::Order>(order);
  launch.yield_percent = yield_percent;
  launch.seed = seed;
  error = emulator::pool(p, static_cast<emulator::Dtype>(dtype), launch);
  return error.c_str();
}
