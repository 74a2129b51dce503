#include "launch.cuh"

namespace affinity_pool::cuda {

cudaError_t launch_float16(Step step, Params p, cudaStream_t stream) { return launch<Float16>(step, p, stream); }

}  // namespace affinity_pool::cuda
