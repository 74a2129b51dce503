// The memory that blocks of a launch talk through: a counter, and a status and a flag for each tile.
//
// Launches on one stream follow one another, so one workspace a stream serves them all, and since a launch leaves it
// fit for the next (pooling.cuh) it is zeroed once, when it is made or grows. While a CUDA graph is captured there is
// no telling which stream will replay it, beside what: each captured call has a workspace of its own, from the graph's
// memory, and a memset in front of its kernel.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <map>
#include <mutex>

#include "../tensors.h"
#include "params.h"

namespace affinity_pool::cuda {

inline void check(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, "affinity_pool: ", what, ": ", cudaGetErrorString(error));
}

inline bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &status), "asking for a capture");
  return status != cudaStreamCaptureStatusNone;
}

struct Workspace {
  Tensor memory;
  int64_t slots;

  // Sets the pointers of `p`.
  void lend(Params& p) const {
    char* memory_of = static_cast<char*>(memory.mutable_data_ptr());
    p.slots_drawn = reinterpret_cast<uint64_t*>(memory_of);
    p.tiles = reinterpret_cast<TileStatus*>(memory_of + kTilesAt);
    p.flags = reinterpret_cast<uint32_t*>(p.tiles + slots);
  }

  static Workspace zeroed(const Tensor& x, int64_t slots, cudaStream_t stream) {
    const int64_t bytes = kTilesAt + slots * static_cast<int64_t>(sizeof(TileStatus) + sizeof(uint32_t));
    Workspace workspace{torch::stable::new_empty(x, {bytes}, ScalarType::Byte), slots};
    check(cudaMemsetAsync(workspace.memory.mutable_data_ptr(), 0, bytes, stream), "zeroing the workspace");
    return workspace;
  }

 private:
  static constexpr int64_t kTilesAt = 128;  // a cache line to the counter
};

inline Workspace workspace_for(const Tensor& x, int64_t slots, cudaStream_t stream) {
  if (is_capturing(stream)) return Workspace::zeroed(x, slots, stream);
  // Never destroyed: torch's allocator may be gone when a process ends.
  static auto& workspaces = *new std::map<std::pair<int, cudaStream_t>, Workspace>;
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  const auto key = std::pair(static_cast<int>(x.get_device()), stream);
  auto found = workspaces.find(key);
  if (found == workspaces.end() || found->second.slots < slots) {
    int64_t room = 1024;
    while (room < slots) room *= 2;
    found = workspaces.insert_or_assign(key, Workspace::zeroed(x, room, stream)).first;
  }
  return found->second;
}

}  // namespace affinity_pool::cuda
