// The memory that blocks of a launch talk through: a counter, and what each tile tells the others (params.h).
//
// Launches on one stream follow one another, so one workspace a stream serves them all, and since a launch leaves it
// fit for the next (pooling.cuh) it is zeroed when it is made, and then once in so many launches that a word of the
// last launch with the same tag is never taken for one of this. It outlives the call, so it must not come from torch's
// allocator: inside torch.compile's warm-up for CUDA graphs, or torch.cuda.use_mem_pool, that hands out memory of a
// pool whose owner counts what is left in it, and takes it back.
//
// While a CUDA graph is captured there is no telling which stream will replay it, beside what: each captured call has a
// workspace of its own. Replays of a graph follow one another, so it is zeroed once, beside the capture, and no memset
// goes before every replay. The graph owns it, through a user object; when the graph and all that was instantiated from
// it are gone, the next capture may have it. A driver that cannot do that gets graph memory and a memset instead.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <optional>
#include <vector>

#include "../tensors.h"
#include "params.h"

namespace affinity_pool::cuda {

// An error that was read is not left for the next call to find.
inline bool succeeded(cudaError_t error) {
  if (error != cudaSuccess) (void)cudaGetLastError();
  return error == cudaSuccess;
}

inline void check(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(succeeded(error), "affinity_pool: ", what, ": ", cudaGetErrorString(error));
}

inline bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &status), "asking for a capture");
  return status != cudaStreamCaptureStatusNone;
}

// While it lives, this thread may allocate beside a capture, its own or another thread's.
class BesideCaptures {
 public:
  BesideCaptures() { (void)cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~BesideCaptures() { (void)cudaThreadExchangeStreamCaptureMode(&mode_); }
  BesideCaptures(const BesideCaptures&) = delete;
  BesideCaptures& operator=(const BesideCaptures&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

struct Workspace {
  void* memory = nullptr;
  int64_t slots = 0;
  uint32_t launches = 0;  // since it was zeroed

  cudaError_t allocate(int64_t wanted) {
    slots = 1024;
    while (slots < wanted) slots *= 2;
    const BesideCaptures guard;
    return cudaMalloc(&memory, workspace_bytes(slots));
  }
  cudaError_t zero(cudaStream_t stream) {
    launches = 0;
    return cudaMemsetAsync(memory, 0, workspace_bytes(slots), stream);
  }
};

// Workspaces of captured calls, on the current device.
class GraphWorkspaces {
 public:
  // A zeroed workspace that the graph under capture on `stream` owns, or one without memory.
  Workspace take(int device, int64_t slots, cudaStream_t stream) {
    // Until the graph has it, and after, nobody else has.
    auto* owned = new Owned{*this, device, returned(device, slots)};
    Workspace& workspace = owned->workspace;
    cudaUserObject_t object = nullptr;
    if ((workspace.memory == nullptr && !succeeded(workspace.allocate(slots))) || !zeroed(device, workspace) ||
        !succeeded(cudaUserObjectCreate(&object, owned, &give_back, 1, cudaUserObjectNoDestructorSync))) {
      give_back(owned);
      return Workspace{};
    }
    const Workspace lent = workspace;
    cudaGraph_t graph = nullptr;
    if (succeeded(graph_under_capture(stream, &graph)) &&
        succeeded(cudaGraphRetainUserObject(graph, object, 1, cudaGraphUserObjectMove)))
      return lent;
    (void)succeeded(cudaUserObjectRelease(object, 1));
    return Workspace{};
  }

 private:
  struct Owned {
    GraphWorkspaces& home;
    int device;
    Workspace workspace;
  };

  static cudaError_t graph_under_capture(cudaStream_t stream, cudaGraph_t* graph) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
#if CUDART_VERSION >= 13000
    return cudaStreamGetCaptureInfo(stream, &status, nullptr, graph);
#else
    return cudaStreamGetCaptureInfo_v2(stream, &status, nullptr, graph);
#endif
  }

  // When nothing can replay the graph any more, on a thread of CUDA's. It must not call CUDA, and no one who holds the
  // mutex does.
  static void CUDART_CB give_back(void* object) {
    const auto* owned = static_cast<Owned*>(object);
    if (owned->workspace.memory != nullptr) {
      const std::lock_guard lock(owned->home.mutex_);
      owned->home.returned_[owned->device].push_back(owned->workspace);
    }
    delete owned;
  }

  Workspace returned(int device, int64_t slots) {
    const std::lock_guard lock(mutex_);
    auto& workspaces = returned_[device];
    const auto fits = [&](const Workspace& workspace) { return workspace.slots >= slots; };
    const auto found = std::find_if(workspaces.begin(), workspaces.end(), fits);
    if (found == workspaces.end()) return Workspace{};
    const Workspace workspace = *found;
    workspaces.erase(found);
    return workspace;
  }

  // On a stream of its own, which no capture knows of.
  static bool zeroed(int device, Workspace& workspace) {
    static thread_local std::map<int, cudaStream_t> streams;
    const BesideCaptures guard;
    cudaStream_t& stream = streams[device];
    return (stream != nullptr || succeeded(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking))) &&
           succeeded(workspace.zero(stream)) && succeeded(cudaStreamSynchronize(stream));
  }

  std::mutex mutex_;
  std::map<int, std::vector<Workspace>> returned_;
};

// Sets the workspace of a call on `stream`. The tensor, if there is one, owns it for as long as the call is prepared.
inline std::optional<Tensor> lend_workspace(Params& p, const Tensor& x, int64_t slots, cudaStream_t stream) {
  // Never destroyed: CUDA may be gone when a process ends.
  static auto& of_graphs = *new GraphWorkspaces;
  static auto& of_streams = *new std::map<std::pair<int, unsigned long long>, Workspace>;
  static std::mutex mutex;
  const int device = static_cast<int>(x.get_device());
  if (is_capturing(stream)) {
    if (const Workspace workspace = of_graphs.take(device, slots, stream); workspace.memory != nullptr) {
      lend_workspace(p, workspace.memory, workspace.slots);
      return std::nullopt;
    }
    const int64_t bytes = workspace_bytes(slots);
    const Tensor memory = torch::stable::new_empty(x, {bytes}, ScalarType::Byte);
    check(cudaMemsetAsync(memory.mutable_data_ptr(), 0, bytes, stream), "zeroing the workspace");
    lend_workspace(p, memory.mutable_data_ptr(), slots);
    return memory;
  }
  // An id belongs to one stream for good; a handle may be a later stream's, or mean another in each thread.
  unsigned long long id = 0;
  check(cudaStreamGetId(stream, &id), "asking for the stream's id");
  const std::lock_guard lock(mutex);
  Workspace& workspace = of_streams[{device, id}];
  if (workspace.slots <
      slots) {  // the smaller one may be in use: it is left to itself, all of them as large as the last
    Workspace larger;
    check(larger.allocate(slots), "allocating the workspace");
    workspace = larger;
    check(workspace.zero(stream), "zeroing the workspace");
  }
  // Half of the tags are left for threads that have been lent the workspace and are yet to launch.
  if (workspace.launches++ == kTags / 2) check(workspace.zero(stream), "zeroing the workspace");
  lend_workspace(p, workspace.memory, workspace.slots);
  return std::nullopt;
}

}  // namespace affinity_pool::cuda
