// Grid, block and entry point of a launch, which csrc/cuda/launch.cuh chooses on a GPU.
#include "kernel.h"

namespace emulator {

using namespace affinity_pool::cuda;

std::string launch(Step step, const Params& p, Dtype dtype, Launch config) {
  const int element_bytes = dtype == Dtype::kFloat32 ? 4 : 2, chunks = chunks_of(p.dim, element_bytes);
  config.grid = static_cast<unsigned>(blocks_of(p, step));
  config.block = static_cast<unsigned>(threads_of(chunks));
  config.shared_bytes = static_cast<size_t>(shared_bytes(p.kept_rows, chunks));
  if (config.grid == 0) return "";
  const bool aligned = is_aligned(p, element_bytes);
  switch (dtype) {
    case Dtype::kFloat32:
      return aligned ? run_kernel<Float32, true>(step, p, config) : run_kernel<Float32, false>(step, p, config);
    case Dtype::kFloat16:
      return aligned ? run_kernel<Float16, true>(step, p, config) : run_kernel<Float16, false>(step, p, config);
    default:
      return aligned ? run_kernel<BFloat16, true>(step, p, config) : run_kernel<BFloat16, false>(step, p, config);
  }
}

std::string select(const Selection& selection, Launch config) {
  config.grid = static_cast<unsigned>(select_blocks_of(selection.rows));
  config.block = kSelectThreads;
  config.shared_bytes = sizeof(SelectShared);
  return config.grid == 0 ? "" : run(config, [&] { select_in_runs(selection); });
}

}  // namespace emulator
