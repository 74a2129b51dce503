// torch.ops.affinity_pool on the CPU: arguments are checked, outputs allocated, the work is Pooling's.
#include <torch/csrc/stable/library.h>

#include <cstring>
#include <vector>

#include "../checks.h"
#include "../tensors.h"
#include "pooling.h"

namespace affinity_pool::cpu {
namespace {

Dtype dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Half:
      return Dtype::kFloat16;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    default:
      return Dtype::kFloat32;
  }
}

void pool_sequences(const Tensor& x, const std::vector<Sequence>& sequences, double threshold, int64_t window,
                    const Output& output) {
  int64_t bytes = 0;
  for (const Sequence& sequence : sequences) bytes += sequence.length * output.row_bytes;
  constexpr int64_t kBytesPerThread = 128 << 10;  // 10 us of work, about what it costs to wake a thread
  const int64_t threads = std::clamp<int64_t>(bytes / kBytesPerThread, 1, torch::stable::get_num_threads());
  Pooling(kernels(dtype_of(x)), MatchRule{threshold}, static_cast<int>(window), sequences, output)
      .run(threads, [threads](int64_t n, const auto& f) {
        if (threads == 1)
          f(0, n);
        else
          torch::stable::parallel_for(0, n, 1, f);
      });
}

Outputs pool(const Tensor& x_in, const std::optional<Tensor>& cu_seqlens_in, const std::optional<Tensor>& mergeable_in,
             double threshold, int64_t window) {
  const int64_t batch = check_pool(x_in, cu_seqlens_in, mergeable_in, threshold, window);
  const int64_t rows = x_in.size(0), dim = x_in.size(1);
  const Tensor x = dense_rows(x_in);
  const std::optional<Tensor> mergeable = dense(mergeable_in), cu_seqlens = dense(cu_seqlens_in);
  const int32_t one_sequence[] = {0, static_cast<int32_t>(rows)};
  const int32_t* cu = cu_seqlens ? cu_seqlens->const_data_ptr<int32_t>() : one_sequence;
  STD_TORCH_CHECK(cu[0] == 0, "cu_seqlens must start at 0, got ", cu[0]);
  for (int64_t b = 0; b < batch; ++b)
    STD_TORCH_CHECK(cu[b] <= cu[b + 1], "cu_seqlens must not decrease, got ", cu[b], " then ", cu[b + 1],
                    " at sequence ", b);
  STD_TORCH_CHECK(cu[batch] == rows, "cu_seqlens must end at the ", rows, " rows of x, got ", cu[batch]);

  const int64_t element = x.element_size();
  const bool* flags = mergeable ? mergeable->const_data_ptr<bool>() : nullptr;
  std::vector<Sequence> sequences(batch);
  for (int64_t b = 0; b < batch; ++b)
    sequences[b] = {{static_cast<const char*>(x.const_data_ptr()) + cu[b] * x.stride(0) * element, x.stride(0), dim,
                     flags ? flags + cu[b] : nullptr},
                    cu[b + 1] - cu[b],
                    cu[b]};

  // The number of groups is known when the last has been written: the outputs are the first rows of larger buffers.
  Tensor values = torch::stable::new_empty(x, {rows, dim}), counts = int32_empty(x, {rows});
  Tensor cu_seqlens_out = int32_empty(x, {batch + 1}), segment_ids = int32_empty(x, {rows});
  int32_t* cu_out = cu_seqlens_out.mutable_data_ptr<int32_t>();
  pool_sequences(x, sequences, threshold, window,
                 {static_cast<char*>(values.mutable_data_ptr()), dim * element, segment_ids.mutable_data_ptr<int32_t>(),
                  counts.mutable_data_ptr<int32_t>(), cu_out + 1, 0, false});
  cu_out[0] = 0;
  for (int64_t b = 0; b < batch; ++b) cu_out[b + 1] += cu_out[b];
  const int64_t groups = cu_out[batch];
  return {torch::stable::narrow(values, 0, 0, groups), cu_seqlens_out, segment_ids,
          torch::stable::narrow(counts, 0, 0, groups)};
}

Outputs pool_padded(const Tensor& x_in, const std::optional<Tensor>& lengths_in,
                    const std::optional<Tensor>& mergeable_in, double threshold, int64_t window, bool left_padded) {
  check_pool_padded(x_in, lengths_in, mergeable_in, threshold, window);
  const Tensor x = dense_rows(x_in);
  const std::optional<Tensor> mergeable = dense(mergeable_in), lengths = dense(lengths_in);
  const int64_t batch = x.size(0), width = x.size(1), dim = x.size(2), element = x.element_size();
  const int32_t* valid = nullptr;
  if (lengths) {
    valid = lengths->const_data_ptr<int32_t>();
    for (int64_t b = 0; b < batch; ++b)
      STD_TORCH_CHECK(valid[b] >= 0 && valid[b] <= width, "lengths must be in 0..", width,
                      " (the padded width of x), got ", valid[b], " at sequence ", b);
  }

  const bool* flags = mergeable ? mergeable->const_data_ptr<bool>() : nullptr;
  std::vector<Sequence> sequences(batch);
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t length = valid ? valid[b] : width, first = left_padded ? width - length : 0;
    const int64_t offset = b * x.stride(0) + first * x.stride(1), row = b * width + first;
    sequences[b] = {{static_cast<const char*>(x.const_data_ptr()) + offset * element, x.stride(1), dim,
                     flags ? flags + row : nullptr},
                    length,
                    row};
  }

  Tensor values = torch::stable::new_empty(x, {batch, width, dim}), lengths_out = int32_empty(x, {batch});
  Tensor segment_ids = int32_empty(x, {batch, width}), counts = int32_empty(x, {batch, width});
  int32_t* ids = segment_ids.mutable_data_ptr<int32_t>();
  int32_t* sizes = counts.mutable_data_ptr<int32_t>();
  const Output output{static_cast<char*>(values.mutable_data_ptr()), dim * element, ids,        sizes,
                      lengths_out.mutable_data_ptr<int32_t>(),       width,         left_padded};
  pool_sequences(x, sequences, threshold, window, output);
  for (int64_t b = 0; b < batch; ++b) {
    const Sequence& sequence = sequences[b];
    const int64_t padding = width - sequence.length, unused = width - output.lengths[b];
    std::fill_n(ids + (left_padded ? b * width : b * width + sequence.length), padding, -1);
    const int64_t row = left_padded ? b * width : b * width + output.lengths[b];
    std::fill_n(sizes + row, unused, 0);
    std::memset(output.values + row * output.row_bytes, 0, unused * output.row_bytes);
  }
  return {values, lengths_out, segment_ids, counts};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(affinity_pool, CPU, m) {
  m.impl("pool", TORCH_BOX(&pool));
  m.impl("pool_padded", TORCH_BOX(&pool_padded));
}

}  // namespace affinity_pool::cpu
