// torch.ops.affinity_pool on CUDA: arguments are checked, outputs allocated, the work is one launch on the current
// stream, or three if a number of rows is promised (links.cuh). The host looks at no data, but for the number of groups
// where `pool` and `pool_to` have to know it.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <numeric>
#include <string>

#include "../checks.h"
#include "../namespace.h"
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

using Launch = cudaError_t (*)(Step, Params, cudaStream_t);
Launch launch_of(const Tensor& x) {
  return x.scalar_type() == ScalarType::Half       ? launch_float16
         : x.scalar_type() == ScalarType::BFloat16 ? launch_bfloat16
                                                   : launch_float32;
}

void check_launch(cudaError_t error) {
  STD_TORCH_CHECK(error != cudaErrorNoKernelImageForDevice || succeeded(error),
                  "affinity_pool: the library has code for ", AP_CUDA_ARCHITECTURES,
                  ", which this GPU does not run; affinity_pool.use(\"triton\") or use(\"reference\") serves it");
  check(error, "launching the kernel");
}

// What a call of either kind says of its input.
Params params_of(const Tensor& x, int64_t batch, const std::optional<Tensor>& bounds,
                 const std::optional<Tensor>& mergeable, Layout layout) {
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
  p.window = 1;
  return p;
}

// Starts the pooling kernel; `outputs` are values, lengths, segment_ids and counts.
void pool_groups(Params p, const Tensor& x, const Outputs& outputs, cudaStream_t stream) {
  const auto& [values, lengths, segment_ids, counts] = outputs;
  p.values = values.data_ptr();
  p.value_rows = static_cast<int>(values.size(values.dim() - 2));
  p.lengths = static_cast<int*>(lengths.data_ptr());
  p.segment_ids = static_cast<int*>(segment_ids.data_ptr());
  p.counts = static_cast<int*>(counts.data_ptr());
  const int64_t slots = slots_of(p.layout, p.batch, p.rows);
  STD_TORCH_CHECK(blocks_of(p) <= INT32_MAX, "x must have fewer than 2^31 tiles of ", kTileRows, " rows, got ", slots);
  const std::optional<Tensor> workspace = lend_workspace(p, x, slots, stream);
  p.sums_stride = sums_stride_of(p.dim, static_cast<int>(x.element_size()));
  const Tensor sums = torch::stable::new_empty(x, {slots, p.sums_stride}, ScalarType::Float);
  p.sums = static_cast<float*>(sums.data_ptr());
  check_launch(launch_of(x)(Step::kPool, p, stream));
}

// Groups by threshold.
struct ByThreshold {
  double threshold;
  int64_t window;

  // How many groups there will be, if the host knows.
  std::optional<int64_t> groups(int64_t, int64_t, bool) const { return std::nullopt; }
  void operator()(Params p, const Tensor& x, const Outputs& outputs, cudaStream_t stream) const {
    p.threshold = threshold;
    p.window = static_cast<int>(window);
    pool_groups(p, x, outputs, stream);
  }
};

// Groups of a promised number: of each sequence's rows or, without, a share of each run's.
struct ByCount {
  double share;
  const Ints& rows;
  std::optional<Tensor> rows_tensor;

  bool is_one_for_all() const {
    return std::all_of(rows->begin(), rows->end(), [&](int64_t n) { return n == rows->front(); });
  }

  std::optional<int64_t> groups(int64_t batch, int64_t length, bool is_one_run) const {
    if (!rows) return is_one_run && !rows_tensor ? std::optional(rows_left(length, share)) : std::nullopt;
    const int64_t sum =
        rows->size() == 1 ? rows->front() * batch : std::accumulate(rows->begin(), rows->end(), int64_t{0});
    STD_TORCH_CHECK(sum <= length, "rows must add up to at most the ", length, " rows of x, got ", sum);
    return sum;
  }

  void operator()(Params p, const Tensor& x, const Outputs& outputs, cudaStream_t stream) const {
    const int64_t all_rows = p.layout == Layout::kPacked ? p.rows : static_cast<int64_t>(p.batch) * p.rows;
    p.promise.share = share;
    std::optional<Tensor> counts = rows_tensor;
    if (rows && is_one_for_all()) {
      p.promise.each = static_cast<int32_t>(std::max<int64_t>(rows->front(), 1));
    } else if (rows) {
      STD_TORCH_CHECK(!is_capturing(stream),
                      "rows that differ cannot be captured in a CUDA graph: a replay would read them where they are no "
                      "longer; pass an int32 tensor on the device of x to pool_padded_to, or one int for all");
      const std::vector<int32_t> on_host(rows->begin(), rows->end());
      counts = int32_empty(x, {p.batch});
      check(cudaMemcpyAsync(counts->mutable_data_ptr(), on_host.data(), on_host.size() * sizeof(int32_t),
                            cudaMemcpyHostToDevice, stream),
            "sending the rows");
    }
    p.promise.rows = data_or_null<const int32_t>(counts);
    const Tensor keys = torch::stable::new_empty(x, {all_rows}, ScalarType::Long);
    const Tensor nearest = torch::stable::new_empty(x, {all_rows}, ScalarType::Byte);
    p.keys = static_cast<uint64_t*>(keys.data_ptr());
    check_launch(launch_of(x)(Step::kLink, p, stream));
    uint8_t* k = static_cast<uint8_t*>(nearest.data_ptr());
    check_launch(launch_selection({p.keys, k, all_rows, share}, stream));
    p.nearest = k;
    p.fills_value_rows = rows.has_value();
    pool_groups(p, x, outputs, stream);
  }
};

template <class Rule>
Outputs pool_packed(const Tensor& x_in, int64_t batch, const std::optional<Tensor>& cu_seqlens_in,
                    const std::optional<Tensor>& mergeable_in, const char* name, const char* padded_name,
                    const Rule& rule) {
  const int64_t rows = x_in.size(0), dim = x_in.size(1);
  const torch::stable::accelerator::DeviceGuard guard(x_in.get_device());
  const Tensor x = dense_rows(x_in);
  const std::optional<Tensor> mergeable = dense(mergeable_in), cu_seqlens = dense(cu_seqlens_in);
  const std::optional<int64_t> known = rule.groups(batch, rows, !cu_seqlens && !mergeable);
  const int64_t most = known.value_or(rows);
  const Outputs outputs{torch::stable::new_empty(x, {most, dim}), int32_empty(x, {batch + 1}), int32_empty(x, {rows}),
                        int32_empty(x, {most})};
  auto [values, cu_seqlens_out, segment_ids, counts] = outputs;
  if (rows == 0) {
    torch::stable::zero_(cu_seqlens_out);
    return outputs;
  }
  const cudaStream_t stream = current_stream(x.get_device());
  STD_TORCH_CHECK(known || !is_capturing(stream), name,
                  " cannot be captured in a CUDA graph, for its shapes depend on data: call ", padded_name);
  rule(params_of(x, batch, cu_seqlens, mergeable, Layout::kPacked), x, outputs, stream);
  if (known) return outputs;
  int32_t groups = 0;
  const int32_t* total = static_cast<const int32_t*>(cu_seqlens_out.data_ptr()) + batch;
  check(cudaMemcpyAsync(&groups, total, sizeof groups, cudaMemcpyDeviceToHost, stream), "reading the groups");
  check(cudaStreamSynchronize(stream), "waiting for the kernel");
  return {torch::stable::narrow(values, 0, 0, groups), cu_seqlens_out, segment_ids,
          torch::stable::narrow(counts, 0, 0, groups)};
}

template <class Rule>
Outputs pool_batch(const Tensor& x_in, const std::optional<Tensor>& lengths, const std::optional<Tensor>& mergeable,
                   bool left_padded, const Rule& rule) {
  const int64_t batch = x_in.size(0), width = x_in.size(1), dim = x_in.size(2);
  check_sizes(batch * width, dim);
  const torch::stable::accelerator::DeviceGuard guard(x_in.get_device());
  const Tensor x = dense_rows(x_in);
  const Outputs outputs{torch::stable::new_empty(x, {batch, width, dim}), int32_empty(x, {batch}),
                        int32_empty(x, {batch, width}), int32_empty(x, {batch, width})};
  if (batch == 0 || width == 0) {
    Tensor lengths_out = std::get<1>(outputs);
    torch::stable::zero_(lengths_out);
    return outputs;
  }
  const Layout layout = left_padded ? Layout::kLeftPadded : Layout::kPadded;
  const std::optional<Tensor> dense_lengths = dense(lengths), dense_mergeable = dense(mergeable);
  rule(params_of(x, batch, dense_lengths, dense_mergeable, layout), x, outputs, current_stream(x.get_device()));
  return outputs;
}

Outputs pool(const Tensor& x, const std::optional<Tensor>& cu_seqlens, const std::optional<Tensor>& mergeable,
             double threshold, int64_t window) {
  const int64_t batch = check_packed(x, cu_seqlens, mergeable);
  check_rule(threshold, window);
  return pool_packed(x, batch, cu_seqlens, mergeable, "pool", "pool_padded", ByThreshold{threshold, window});
}

Outputs pool_padded(const Tensor& x, const std::optional<Tensor>& lengths, const std::optional<Tensor>& mergeable,
                    double threshold, int64_t window, bool left_padded) {
  check_padded(x, lengths, mergeable);
  check_rule(threshold, window);
  return pool_batch(x, lengths, mergeable, left_padded, ByThreshold{threshold, window});
}

Outputs pool_to(const Tensor& x, const std::optional<Tensor>& cu_seqlens, const std::optional<Tensor>& mergeable,
                double share, const Ints& rows, const std::optional<Tensor>& rows_tensor) {
  const int64_t batch = check_packed(x, cu_seqlens, mergeable);
  check_keep(x, batch, cu_seqlens, mergeable, share, rows, rows_tensor);
  return pool_packed(x, batch, cu_seqlens, mergeable, "pool_to", "pool_padded_to",
                     ByCount{share, rows, dense(rows_tensor)});
}

Outputs pool_padded_to(const Tensor& x, const std::optional<Tensor>& lengths, const std::optional<Tensor>& mergeable,
                       double share, const Ints& rows, const std::optional<Tensor>& rows_tensor, bool left_padded) {
  check_padded(x, lengths, mergeable);
  check_keep(x, x.size(0), lengths, mergeable, share, rows, rows_tensor);
  return pool_batch(x, lengths, mergeable, left_padded, ByCount{share, rows, dense(rows_tensor)});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(AFFINITY_POOL_NAMESPACE, CUDA, m) {
  m.impl("pool", TORCH_BOX(&pool));
  m.impl("pool_padded", TORCH_BOX(&pool_padded));
  m.impl("pool_to", TORCH_BOX(&pool_to));
  m.impl("pool_padded_to", TORCH_BOX(&pool_padded_to));
}

}  // namespace affinity_pool::cuda

// For affinity_pool.backends(), through ctypes.
extern "C" __attribute__((visibility("default"))) const char* affinity_pool_cuda_architectures() {
  return AP_CUDA_ARCHITECTURES;
}

// The major version of the CUDA that this was built with: drivers of an older one run none of it.
extern "C" __attribute__((visibility("default"))) const char* affinity_pool_cuda_release() {
  static const std::string release = std::to_string(CUDART_VERSION / 1000);
  return release.c_str();
}
