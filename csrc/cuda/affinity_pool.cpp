// torch.ops.affinity_pool on CUDA: arguments are checked, outputs allocated, the work is one launch on the current
// stream. The host looks at no data, but for the number of groups that `pool` has to know.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "../checks.h"
#include "../tensors.h"
#include "launch.h"
#include "workspace.h"

// Part of torch's stable interface, in builds with CUDA only: weak, so that the library loads into the others.
extern "C" __attribute__((weak)) int32_t aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace affinity_pool::cuda {
namespace {

cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "affinity_pool: this torch was built without CUDA");
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &stream) == 0,
                  "affinity_pool: torch has no current stream");
  return static_cast<cudaStream_t>(stream);
}

template <class T>
T* data_or_null(const std::optional<Tensor>& t) {
  return t ? static_cast<T*>(t->data_ptr()) : nullptr;
}

// Starts the kernel on rows [.., D] of `batch` sequences; `outputs` are values, lengths, segment_ids and counts.
void launch(const Tensor& x, int64_t batch, const std::optional<Tensor>& bounds, const std::optional<Tensor>& mergeable,
            Layout layout, double threshold, int64_t window, const Outputs& outputs, cudaStream_t stream) {
  const auto& [values, lengths, segment_ids, counts] = outputs;
  const int64_t last = x.dim() - 1;
  Params p{};
  p.x = x.data_ptr();
  p.row_stride = x.stride(last - 1);
  p.sequence_stride = layout == Layout::kPacked ? 0 : x.stride(0);
  p.dim = static_cast<int>(x.size(last));
  p.batch = static_cast<int>(batch);
  p.rows = static_cast<int>(x.size(last - 1));
  p.bounds = data_or_null<const int>(bounds);
  p.mergeable = data_or_null<const bool>(mergeable);
  p.layout = layout;
  p.threshold = threshold;
  p.window = static_cast<int>(window);
  p.values = values.data_ptr();
  p.lengths = static_cast<int*>(lengths.data_ptr());
  p.segment_ids = static_cast<int*>(segment_ids.data_ptr());
  p.counts = static_cast<int*>(counts.data_ptr());

  const int64_t slots = slots_of(layout, batch, p.rows);
  STD_TORCH_CHECK(blocks_of(p) <= INT32_MAX, "x must have fewer than 2^31 tiles of ", kTileRows, " rows, got ", slots);
  const std::optional<Tensor> workspace = lend_workspace(p, x, slots, stream);
  p.sums_stride = sums_stride_of(p.dim, static_cast<int>(x.element_size()));
  const Tensor sums = torch::stable::new_empty(x, {slots, p.sums_stride}, ScalarType::Float);
  p.sums = static_cast<float*>(sums.data_ptr());
  const auto start = x.scalar_type() == ScalarType::Half       ? launch_float16
                     : x.scalar_type() == ScalarType::BFloat16 ? launch_bfloat16
                                                               : launch_float32;
  const cudaError_t error = start(p, stream);
  STD_TORCH_CHECK(error != cudaErrorNoKernelImageForDevice || succeeded(error),
                  "affinity_pool: the library has code for ", AP_CUDA_ARCHITECTURES,
                  ", which this GPU does not run; affinity_pool.use(\"triton\") or use(\"reference\") serves it");
  check(error, "launching the kernel");
}

Outputs pool(const Tensor& x_in, const std::optional<Tensor>& cu_seqlens_in, const std::optional<Tensor>& mergeable_in,
             double threshold, int64_t window) {
  const int64_t batch = check_packed(x_in, cu_seqlens_in, mergeable_in);
  check_rule(threshold, window);
  const int64_t rows = x_in.size(0), dim = x_in.size(1);
  const torch::stable::accelerator::DeviceGuard guard(x_in.get_device());
  const Tensor x = dense_rows(x_in);
  const std::optional<Tensor> mergeable = dense(mergeable_in), cu_seqlens = dense(cu_seqlens_in);
  const Outputs outputs{torch::stable::new_empty(x, {rows, dim}), int32_empty(x, {batch + 1}), int32_empty(x, {rows}),
                        int32_empty(x, {rows})};
  auto [values, cu_seqlens_out, segment_ids, counts] = outputs;
  int32_t groups = 0;
  if (rows == 0) {
    torch::stable::zero_(cu_seqlens_out);
  } else {
    const cudaStream_t stream = current_stream(x.get_device());
    STD_TORCH_CHECK(!is_capturing(stream),
                    "pool cannot be captured in a CUDA graph, for its shapes depend on data: call pool_padded");
    launch(x, batch, cu_seqlens, mergeable, Layout::kPacked, threshold, window, outputs, stream);
    const int32_t* total = static_cast<const int32_t*>(cu_seqlens_out.data_ptr()) + batch;
    check(cudaMemcpyAsync(&groups, total, sizeof groups, cudaMemcpyDeviceToHost, stream), "reading the groups");
    check(cudaStreamSynchronize(stream), "waiting for the kernel");
  }
  return {torch::stable::narrow(values, 0, 0, groups), cu_seqlens_out, segment_ids,
          torch::stable::narrow(counts, 0, 0, groups)};
}

Outputs pool_padded(const Tensor& x_in, const std::optional<Tensor>& lengths_in,
                    const std::optional<Tensor>& mergeable_in, double threshold, int64_t window, bool left_padded) {
  check_padded(x_in, lengths_in, mergeable_in);
  check_rule(threshold, window);
  const int64_t batch = x_in.size(0), width = x_in.size(1), dim = x_in.size(2);
  check_sizes(batch * width, dim);
  const torch::stable::accelerator::DeviceGuard guard(x_in.get_device());
  const Tensor x = dense_rows(x_in);
  const Outputs outputs{torch::stable::new_empty(x, {batch, width, dim}), int32_empty(x, {batch}),
                        int32_empty(x, {batch, width}), int32_empty(x, {batch, width})};
  if (batch == 0 || width == 0) {
    Tensor lengths_out = std::get<1>(outputs);
    torch::stable::zero_(lengths_out);
  } else {
    const Layout layout = left_padded ? Layout::kLeftPadded : Layout::kPadded;
    launch(x, batch, dense(lengths_in), dense(mergeable_in), layout, threshold, window, outputs,
           current_stream(x.get_device()));
  }
  return outputs;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(affinity_pool, CUDA, m) {
  m.impl("pool", TORCH_BOX(&pool));
  m.impl("pool_padded", TORCH_BOX(&pool_padded));
}

}  // namespace affinity_pool::cuda

// For affinity_pool.backends(), through ctypes.
extern "C" __attribute__((visibility("default"))) const char* affinity_pool_cuda_architectures() {
  return AP_CUDA_ARCHITECTURES;
}
