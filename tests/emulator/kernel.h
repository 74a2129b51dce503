// The kernel of csrc/cuda as the emulator runs it, with a workspace as the host code keeps it.
#pragma once

#include <string>

#include "cuda/pooling.cuh"

namespace emulator {

using affinity_pool::cuda::Params;

enum class Dtype { kFloat32, kFloat16, kBFloat16 };

// Sets the workspace of `params` and runs the kernel: its flags, counter and tiles stay from call to call, its sums are
// poisoned before each.
std::string pool(Params params, Dtype dtype, Launch launch);

}  // namespace emulator
