// CUDA's runtime and csrc/cuda/launch.h for the CPU: a device of one stream, whose kernel runs in the emulator, on
// another schedule each time. Rows are kept as an H100 would with as many as fit.
//
// One graph can be under capture; what it does runs at once. Tests steer and watch all this through the last functions.
#include <cstdlib>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/launch.h"
#include "kernel.h"

struct UserObject {
  void* resource;
  cudaHostFn_t destroy;
};
struct Graph {
  std::vector<UserObject*> objects;
};
struct Stream {};

namespace {

Graph graph;
Stream other_stream;
bool capturing = false, owns_objects = true, may_wait = true;
cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
int memset_nodes = 0, allocations = 0, zeroed = 0;
cudaError_t next_launch = cudaSuccess, last_error = cudaSuccess;

cudaError_t failed(cudaError_t error) { return last_error = error; }

}  // namespace

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? "unspecified launch failure" : "another error";
}
cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
cudaError_t cudaMalloc(void** p, size_t bytes) {
  if (capturing && mode != cudaStreamCaptureModeRelaxed) return failed(cudaErrorNotSupported);
  ++allocations;
  *p = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t stream) {
  ++(capturing && stream == nullptr ? memset_nodes : zeroed);
  std::memset(p, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (!may_wait && stream == nullptr) return failed(cudaErrorNotSupported);
  return capturing && (stream == nullptr || mode != cudaStreamCaptureModeRelaxed) ? failed(cudaErrorNotSupported)
                                                                                  : cudaSuccess;
}
cudaError_t cudaStreamGetId(cudaStream_t, unsigned long long* id) {
  *id = 7;
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = &other_stream;
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status, unsigned long long*,
                                     cudaGraph_t* captured) {
  *captured = &graph;
  return cudaStreamIsCapturing(nullptr, status);
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* other) {
  std::swap(mode, *other);
  return cudaSuccess;
}
cudaError_t cudaUserObjectCreate(cudaUserObject_t* object, void* resource, cudaHostFn_t destroy, unsigned, unsigned) {
  if (!owns_objects) return failed(cudaErrorNotSupported);
  *object = new UserObject{resource, destroy};
  return cudaSuccess;
}
cudaError_t cudaUserObjectRelease(cudaUserObject_t object, unsigned) {
  object->destroy(object->resource);
  delete object;
  return cudaSuccess;
}
cudaError_t cudaGraphRetainUserObject(cudaGraph_t graph, cudaUserObject_t object, unsigned, unsigned) {
  graph->objects.push_back(object);
  return cudaSuccess;
}

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

namespace affinity_pool::cuda {
namespace {

cudaError_t launched(const std::function<std::string(emulator::Launch)>& kernel) {
  if (next_launch != cudaSuccess) {
    const cudaError_t error = next_launch;
    next_launch = cudaSuccess;
    return failed(error);
  }
  static uint64_t calls = 0;
  emulator::Launch config{};
  config.seed = calls++;
  const std::string error = kernel(config);
  if (!error.empty()) throw std::runtime_error("emulator: " + error);
  return cudaSuccess;
}

cudaError_t launch(Step step, Params p, emulator::Dtype dtype) {
  p.kept_rows = kTileRows + p.window;
  return launched([&](emulator::Launch config) { return emulator::launch(step, p, dtype, config); });
}

}  // namespace

cudaError_t launch_float32(Step step, Params p, cudaStream_t) { return launch(step, p, emulator::Dtype::kFloat32); }
cudaError_t launch_float16(Step step, Params p, cudaStream_t) { return launch(step, p, emulator::Dtype::kFloat16); }
cudaError_t launch_bfloat16(Step step, Params p, cudaStream_t) { return launch(step, p, emulator::Dtype::kBFloat16); }
cudaError_t launch_selection(const Selection& selection, cudaStream_t) {
  return launched([&](emulator::Launch config) { return emulator::select(selection, config); });
}

}  // namespace affinity_pool::cuda

#define FOR_TESTS extern "C" __attribute__((visibility("default")))
FOR_TESTS void emulate_capture(bool active) { capturing = active; }
FOR_TESTS void emulate_a_wait_is_an_error(bool active) { may_wait = !active; }
FOR_TESTS void emulate_the_end_of_the_graph() {
  for (UserObject* object : graph.objects) cudaUserObjectRelease(object, 1);
  graph.objects.clear();
}
FOR_TESTS void emulate_a_driver_without_user_objects(bool active) { owns_objects = !active; }
FOR_TESTS void emulate_a_failing_launch(int error) { next_launch = static_cast<cudaError_t>(error); }
FOR_TESTS int emulated_memset_nodes() { return memset_nodes; }
FOR_TESTS int emulated_allocations() { return allocations; }
FOR_TESTS int emulated_memsets() { return zeroed; }
FOR_TESTS int emulated_last_error() { return last_error; }
