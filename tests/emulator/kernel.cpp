// One translation unit per format and alignment, so that ninja compiles them side by side: -DFORMAT=... -DALIGNED=...
#include "kernel.h"

namespace emulator {

using namespace affinity_pool::cuda;

template <class F, bool kAligned>
std::string run_kernel(Step step, const Params& params, const Launch& config) {
  if (step == Step::kLink) return run(config, [&] { link_tile<NeighbourDots<F, kAligned>>(params); });
  return with_dots<F, kAligned>(params.window,
                                [&](auto dots) { return run(config, [&] { pool_tile<decltype(dots)>(params); }); });
}

template std::string run_kernel<FORMAT, ALIGNED>(Step, const Params&, const Launch&);

}  // namespace emulator
