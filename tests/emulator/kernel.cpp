// One translation unit per format and alignment, so that ninja compiles them side by side: -DFORMAT=... -DALIGNED=...
#include "kernel.h"

namespace emulator {

using namespace affinity_pool::cuda;

template <class F, bool kAligned>
std::string run_kernel(const Params& params, const Launch& launch) {
  return params.window == 1 ? run(launch, [&] { pool_tile<F, 2, kAligned>(params); })
                            : run(launch, [&] { pool_tile<F, 4, kAligned>(params); });
}

template std::string run_kernel<FORMAT, ALIGNED>(const Params&, const Launch&);

}  // namespace emulator
