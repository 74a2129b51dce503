// csrc/cuda/launch.h for the CPU: the kernel that the host code prepared runs in the emulator, on another schedule each
// time. Rows are kept as an H100 would with as many as fit.
#include "cuda/launch.h"

#include <stdexcept>
#include <string>

#include "cuda/pooling.cuh"

bool emulated_capture = false;

extern "C" __attribute__((visibility("default"))) void emulate_capture(bool active) { emulated_capture = active; }

// What the host code asks of a torch with CUDA; the CPU has one stream and no current device to guard.
extern "C" int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
extern "C" int32_t aoti_torch_create_device_guard(int32_t, void** guard) {
  *guard = nullptr;
  return 0;
}
extern "C" int32_t aoti_torch_delete_device_guard(void*) { return 0; }

namespace emulator {

using namespace affinity_pool::cuda;

template <class F, bool kAligned>
std::string run_kernel(const Params& params, const Launch& launch);

template <class F>
cudaError_t launch(Params p) {
  static uint64_t calls = 0;
  constexpr int kElementBytes = sizeof(typename F::Element);
  p.kept_rows = kTileRows + p.window;
  Launch launch{};
  launch.grid = static_cast<unsigned>(blocks_of(p));
  launch.block = static_cast<unsigned>(threads_of(chunks_of(p.dim, kElementBytes)));
  launch.shared_bytes = shared_bytes(p.kept_rows, chunks_of(p.dim, kElementBytes));
  launch.seed = calls++;
  const std::string error =
      is_aligned(p, kElementBytes) ? run_kernel<F, true>(p, launch) : run_kernel<F, false>(p, launch);
  if (!error.empty()) throw std::runtime_error("emulator: " + error);
  return cudaSuccess;
}

}  // namespace emulator

namespace affinity_pool::cuda {

cudaError_t launch_float32(Params p, cudaStream_t) { return emulator::launch<Float32>(p); }
cudaError_t launch_float16(Params p, cudaStream_t) { return emulator::launch<Float16>(p); }
cudaError_t launch_bfloat16(Params p, cudaStream_t) { return emulator::launch<BFloat16>(p); }

}  // namespace affinity_pool::cuda
