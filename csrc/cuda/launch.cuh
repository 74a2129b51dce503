// The kernel's entry points for one format and how many rows a block keeps: included by one file a format.
#pragma once

#include "launch.h"
#include "pooling.cuh"

namespace affinity_pool::cuda {

// Four blocks on a multiprocessor leave a thread 128 registers, and none spills; five, 102, and one kernel does.
constexpr int kBlocksPerMultiprocessor = 4;

template <class F, int kLags, bool kAligned>
__global__ void __launch_bounds__(32 * kMaxWarps, kBlocksPerMultiprocessor)
    affinity_pool(const __grid_constant__ Params p) {
  pool_tile<F, kLags, kAligned>(p);
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
    const int64_t rows = (room - kRowsAt) / (static_cast<int64_t>(chunks) * kChunkBytes);
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
  const bool aligned = is_aligned(p, kElementBytes);
  const auto kernel = p.window == 1 ? (aligned ? affinity_pool<F, 2, true> : affinity_pool<F, 2, false>)
                                    : (aligned ? affinity_pool<F, 4, true> : affinity_pool<F, 4, false>);
  const int bytes = static_cast<int>(shared_bytes(p.kept_rows, chunks));
  constexpr int kWithoutAsking = 48 << 10;
  if (bytes > kWithoutAsking) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  kernel<<<static_cast<unsigned>(blocks), threads_of(chunks), bytes, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace affinity_pool::cuda
