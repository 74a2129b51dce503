// One translation unit per format and alignment, so that ninja compiles them side by side: -DFORMAT=... -DALIGNED=...
#include "kernel.h"

namespace emulator {

using namespace affinity_pool::cuda;

template <class F, bool kAligned>
std::string run_kernel(Step step, const Params& params, const Launch& config) {
  return with_dots<F, kAligned>(params.window, [&](auto dots) {
    using Dots = decltype(dots);
    return step == Step::kLink ? run(config, [&] { link_tile<Dots>(params); })
                               : run(config, [&] { pool_tile<Dots>(params); });
  });
}

template std::string run_kernel<FORMAT, ALIGNED>(Step, const Params&, const Launch&);

}  // namespace emulator
