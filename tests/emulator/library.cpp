// For ctypes: runs the kernel in the emulator on memory that belongs to torch.
#include <cstdlib>
#include <limits>
#include <vector>

#include "kernel.h"

namespace emulator {

using namespace affinity_pool::cuda;

namespace {

// Sixteen launches before their tags start again.
constexpr uint64_t kDrawn = (kTags - 16ull) << 32;

struct alignas(16) Line {
  char bytes[16];
};
std::vector<Line> workspace;
int64_t slots_of_workspace = 0;

}  // namespace

std::string pool(Params p, Dtype dtype, Launch config) {
  const int64_t slots = slots_of(p.layout, p.batch, p.rows);
  const bool grows = slots > slots_of_workspace;
  if (grows) {
    slots_of_workspace = slots;
    workspace.assign(static_cast<size_t>(workspace_bytes(slots)) / sizeof(Line) + 1, Line{});
  }
  lend_workspace(p, workspace.data(), slots_of_workspace);
  if (grows) *p.slots_drawn = kDrawn;
  p.sums_stride = sums_stride_of(p.dim, dtype == Dtype::kFloat32 ? 4 : 2);
  float* sums = static_cast<float*>(std::aligned_alloc(64, (slots * p.sums_stride * 4 + 63) / 64 * 64));
  for (int64_t i = 0; i < slots * p.sums_stride; ++i) sums[i] = std::numeric_limits<float>::quiet_NaN();
  p.sums = sums;
  const std::string error = launch(Step::kPool, p, dtype, config);
  if (!error.empty()) slots_of_workspace = 0;  // left in the middle of a launch
  std::free(sums);
  return error;
}

std::string pool_to(Params p, Dtype dtype, Launch config) {
  const int64_t rows = p.layout == Layout::kPacked ? p.rows : static_cast<int64_t>(p.batch) * p.rows;
  std::vector<uint64_t> keys(rows, 0xcdcdcdcdcdcdcdcdu);
  std::vector<uint8_t> nearest(rows, config.seed % 2 == 0 ? 0xcd : 1);  // what begins a group by chance, or joins one
  p.window = 1;
  p.keys = keys.data();
  if (std::string error = launch(Step::kLink, p, dtype, config); !error.empty()) return error;
  if (std::string error = select({keys.data(), nearest.data(), rows, p.promise.share}, config); !error.empty())
    return error;
  p.nearest = nearest.data();
  return pool(p, dtype, config);
}

}  // namespace emulator

extern "C" __attribute__((visibility("default"))) const char* emulator_pool(
    const void* x, int64_t row_stride, int64_t sequence_stride, int dim, int batch, int rows, const int* bounds,
    const bool* mergeable, int layout, double threshold, int window, bool promises, double share, const int* promised,
    int promised_each, int value_rows, bool fills_value_rows, void* values, int* lengths, int* segment_ids, int* counts,
    int dtype, int kept_rows, unsigned resident, int order, unsigned yield_percent, uint64_t seed) {
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
  p.promise = {share, promised, promised_each};
  p.value_rows = value_rows;
  p.fills_value_rows = fills_value_rows;
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
  error = (promises ? emulator::pool_to : emulator::pool)(p, static_cast<emulator::Dtype>(dtype), launch);
  return error.c_str();
}

// Of a tile's row of sums: elements from the first row to one of its chunks.
extern "C" __attribute__((visibility("default"))) int64_t emulator_sum_offset(int element_bytes, int tile,
                                                                              int64_t stride, int chunk) {
  using namespace affinity_pool::cuda;
  const auto bytes = [](float* p) { return reinterpret_cast<intptr_t>(p); };
  return (element_bytes == 4 ? bytes(SumRows<uint32_t>{nullptr, stride}.of(tile, chunk))
                             : bytes(SumRows<uint16_t>{nullptr, stride}.of(tile, chunk))) /
         static_cast<int64_t>(sizeof(float));
}
