#include "launch.cuh"

namespace affinity_pool::cuda {

cudaError_t launch_float32(Step step, Params p, cudaStream_t stream) { return launch<Float32>(step, p, stream); }

}  // namespace affinity_pool::cuda
