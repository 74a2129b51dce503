// The kernel of csrc/cuda as the emulator runs it.
#pragma once

#include <string>

#include "cuda/pooling.cuh"

namespace emulator {

using affinity_pool::cuda::Params;

enum class Dtype { kFloat32, kFloat16, kBFloat16 };

// Runs the kernel on a workspace that `params` has, in the geometry that follows from it.
std::string launch(const Params& params, Dtype dtype, Launch config);

// The same with a workspace as the host code keeps it: its flags, counter and tiles stay from call to call, its sums
// are poisoned before each.
std::string pool(Params params, Dtype dtype, Launch config);

// One per format and alignment, in files of their own.
template <class F, bool kAligned>
std::string run_kernel(const Params& params, const Launch& config);

}  // namespace emulator
