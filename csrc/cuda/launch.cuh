// The kernel's entry points for one format and how many rows a block keeps: included by one file a format.
#pragma once

#include "launch.h"
#include "pooling.cuh"

namespace affinity_pool::cuda {

// Four blocks on a multiprocessor leave a thread 128 registers, and none spills; five, 102, and one kernel does.
constexpr int kBlocksPerMultiprocessor = 4;

template <class Dots>
__global__ void __launch_bounds__(32 * kMaxWarps, kBlocksPerMultiprocessor)
    affinity_pool(const __grid_constant__ Params p) {
  pool_tile<Dots>(p);
}

// Rows of a tile and before it that go to shared memory: the tile's own with as many blocks on a multiprocessor as the
// grid can fill, then what fits of the window. A row that is not kept is read from L2 again; results do not change.
inline cudaError_t choose_kept_rows(Params& p, int64_t blocks, int chunks) {
  int device = 0, multiprocessors = 0, per_multiprocessor = 0, per_block = 0, reserved = 0;
  cudaError_t error = cudaGetDevice(&device);
  const auto read = [&](int& value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, attribute, device);
  };
  read(multiprocessors, cudaDevAttrMultiProcessorCount);
  read(per_multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  read(per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  read(reserved, cudaDevAttrReservedSharedMemoryPerBlock);
  if (error != cudaSuccess) return error;
  const int64_t wanted = (blocks + multiprocessors - 1) / multiprocessors;
  for (int64_t side_by_side = wanted < kBlocksPerMultiprocessor ? wanted : kBlocksPerMultiprocessor;; --side_by_side) {
    int64_t room = per_multiprocessor / side_by_side - reserved;
    if (room > per_block) room = per_block;
    const int64_t rows = (room - kRowsAt) / (static_cast<int64_t>(kept_stride_of(chunks)) * kChunkBytes);
    if (rows < kTileRows && side_by_side > 1) continue;
    const int64_t most = kTileRows + p.window;
    p.kept_rows = static_cast<int>(rows < 0 ? 0 : rows < most ? rows : most);
    return cudaSuccess;
  }
}

template <class F>
cudaError_t launch(Params p, cudaStream_t stream) {
  constexpr int kElementBytes = sizeof(typename F::Element);
  const int chunks = chunks_of(p.dim, kElementBytes);
  const int64_t blocks = blocks_of(p);
  cudaError_t error = choose_kept_rows(p, blocks, chunks);
  if (error != cudaSuccess) return error;
  const auto kernel_of = [](auto dots) { return reinterpret_cast<const void*>(affinity_pool<decltype(dots)>); };
  const void* kernel =
      is_aligned(p, kElementBytes) ? with_dots<F, true>(p.window, kernel_of) : with_dots<F, false>(p.window, kernel_of);
  const size_t bytes = shared_bytes(p.kept_rows, chunks);
  // Without being asked, the driver may leave shared memory for fewer blocks than fit, or a block 48 KB.
  const auto set = [&](cudaFuncAttribute attribute, int value) {
    if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, attribute, value);
  };
  set(cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  set(cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (error != cudaSuccess) return error;
  void* arguments[] = {&p};
  return cudaLaunchKernel(kernel, static_cast<unsigned>(blocks), threads_of(chunks), arguments, bytes, stream);
}

}  // namespace affinity_pool::cuda
