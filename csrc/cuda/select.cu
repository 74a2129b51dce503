#include "launch.h"
#include "select.cuh"

namespace affinity_pool::cuda {

__global__ void __launch_bounds__(kSelectThreads) affinity_pool_select(const __grid_constant__ Selection s) {
  select_in_runs(s);
}

cudaError_t launch_selection(const Selection& selection, cudaStream_t stream) {
  Selection s = selection;
  void* arguments[] = {&s};
  return cudaLaunchKernel(reinterpret_cast<const void*>(affinity_pool_select),
                          static_cast<unsigned>(select_blocks_of(s.rows)), kSelectThreads, arguments,
                          sizeof(SelectShared), stream);
}

}  // namespace affinity_pool::cuda
