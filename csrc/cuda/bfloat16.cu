#include "launch.cuh"

namespace affinity_pool::cuda {

cudaError_t launch_bfloat16(Step step, Params p, cudaStream_t stream) { return launch<BFloat16>(step, p, stream); }

}  // namespace affinity_pool::cuda
