#include "launch.cuh"

namespace affinity_pool::cuda {

cudaError_t launch_float16(Params p, cudaStream_t stream) { return launch<Float16>(p, stream); }

}  // namespace affinity_pool::cuda
