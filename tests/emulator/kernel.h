// The kernels of csrc/cuda as the emulator runs it.
#pragma once

#include <string>

#include "cuda/links.cuh"
#include "cuda/pooling.cuh"
#include "cuda/select.cuh"

namespace emulator {

using affinity_pool::cuda::Params;
using affinity_pool::cuda::Selection;
using affinity_pool::cuda::Step;

enum class Dtype { kFloat32, kFloat16, kBFloat16 };

// Runs a kernel on what `params` has, a workspace among it, in the geometry that follows from it.
std::string launch(Step step, const Params& params, Dtype dtype, Launch config);
std::string select(const Selection& selection, Launch config);

// The same with a workspace as the host code keeps it: its flags, counter and tiles stay from call to call, its sums
// are poisoned before each.
std::string pool(Params params, Dtype dtype, Launch config);

// As many rows as `params` promises: links and selection before it, on memory that is poisoned as well.
std::string pool_to(Params params, Dtype dtype, Launch config);

// One per format and alignment, in files of their own.
template <class F, bool kAligned>
std::string run_kernel(Step step, const Params& params, const Launch& config);

}  // namespace emulator
