// The kernels' entry points for one format and how many rows a block keeps: included by one file a format.
#pragma once

#include <algorithm>
#include <atomic>
#include <type_traits>

#include "launch.h"
#include "links.cuh"
#include "pooling.cuh"

namespace affinity_pool::cuda {

// Four blocks on a multiprocessor leave a thread 128 registers, and none spills; five, 102, and one kernel does.
constexpr int kBlocksPerMultiprocessor = 4;

template <class Dots>
__global__ void __launch_bounds__(32 * kMaxWarps, kBlocksPerMultiprocessor)
    affinity_pool(const __grid_constant__ Params p) {
  pool_tile<Dots>(p);
}

template <class Dots>
__global__ void __launch_bounds__(32 * kMaxWarps, kBlocksPerMultiprocessor)
    affinity_pool_link(const __grid_constant__ Params p) {
  link_tile<Dots>(p);
}

struct Device {
  int number = 0, multiprocessors = 0, shared_bytes = 0, shared_bytes_of_block = 0, reserved_bytes_of_block = 0;

  cudaError_t read() {
    cudaError_t error = cudaGetDevice(&number);
    const auto ask = [&](int& value, cudaDeviceAttr attribute) {
      if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, attribute, number);
    };
    ask(multiprocessors, cudaDevAttrMultiProcessorCount);
    ask(shared_bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
    ask(shared_bytes_of_block, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    ask(reserved_bytes_of_block, cudaDevAttrReservedSharedMemoryPerBlock);
    return error;
  }
};

// Rows of a tile and before it that go to shared memory: the tile's own with as many blocks on a multiprocessor as the
// grid can fill, then what fits of the window. A row that is not kept is read from L2 again; results do not change.
inline int choose_kept_rows(const Device& device, int64_t blocks, int chunks, int window) {
  const int64_t row_bytes = static_cast<int64_t>(kept_stride_of(chunks)) * kChunkBytes;
  const int64_t wanted = (blocks + device.multiprocessors - 1) / device.multiprocessors;
  for (int64_t side_by_side = std::min<int64_t>(wanted, kBlocksPerMultiprocessor);; --side_by_side) {
    const int64_t share = device.shared_bytes / side_by_side - device.reserved_bytes_of_block;
    const int64_t rows = (std::min<int64_t>(share, device.shared_bytes_of_block) - kRowsAt) / row_bytes;
    if (rows < kTileRows && side_by_side > 1) continue;
    return static_cast<int>(std::clamp<int64_t>(rows, 0, kTileRows + window));
  }
}

// Of a kernel, once a device: without being asked, the driver may leave a block 48 KB of shared memory, and a
// multiprocessor less than its blocks could fill.
template <auto kKernel>
cudaError_t ask_for_shared_memory(const Device& device) {
  static std::atomic<uint64_t> asked{0};  // a bit a device
  const uint64_t bit = device.number < 64 ? uint64_t{1} << device.number : 0;
  if ((asked.load() & bit) != 0) return cudaSuccess;
  cudaError_t error = cudaSuccess;
  const auto set = [&](cudaFuncAttribute attribute, int value) {
    if (error == cudaSuccess) error = cudaFuncSetAttribute(kKernel, attribute, value);
  };
  set(cudaFuncAttributeMaxDynamicSharedMemorySize, device.shared_bytes_of_block);
  set(cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  if (error == cudaSuccess) asked |= bit;
  return error;
}

template <auto kKernel>
cudaError_t launch(const Device& device, Params& p, int64_t blocks, int chunks, cudaStream_t stream) {
  const cudaError_t error = ask_for_shared_memory<kKernel>(device);
  if (error != cudaSuccess) return error;
  void* arguments[] = {&p};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kKernel), static_cast<unsigned>(blocks), threads_of(chunks),
                          arguments, shared_bytes(p.kept_rows, chunks), stream);
}

template <class F>
cudaError_t launch(Step step, Params p, cudaStream_t stream) {
  Device device;
  const cudaError_t error = device.read();
  if (error != cudaSuccess) return error;
  constexpr int kElementBytes = sizeof(typename F::Element);
  const int chunks = chunks_of(p.dim, kElementBytes);
  const int64_t blocks = blocks_of(p, step);
  p.kept_rows = choose_kept_rows(device, blocks, chunks, p.window);
  const auto start = [&](auto is_aligned) {
    constexpr bool kAligned = decltype(is_aligned)::value;
    if (step == Step::kLink)
      return launch<affinity_pool_link<NeighbourDots<F, kAligned>>>(device, p, blocks, chunks, stream);
    return with_dots<F, kAligned>(
        p.window, [&](auto dots) { return launch<affinity_pool<decltype(dots)>>(device, p, blocks, chunks, stream); });
  };
  return is_aligned(p, kElementBytes) ? start(std::true_type{}) : start(std::false_type{});
}

}  // namespace affinity_pool::cuda
