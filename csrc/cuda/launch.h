// Starts the kernels: what affinity_pool.cpp knows of the files that nvcc compiles.
#pragma once

#include <cuda_runtime_api.h>

#include "params.h"

namespace affinity_pool::cuda {

// Sets kept_rows and launches on the current device. One of these per file that nvcc compiles.
cudaError_t launch_float32(Step, Params, cudaStream_t);
cudaError_t launch_float16(Step, Params, cudaStream_t);
cudaError_t launch_bfloat16(Step, Params, cudaStream_t);
cudaError_t launch_selection(const Selection&, cudaStream_t);

}  // namespace affinity_pool::cuda
