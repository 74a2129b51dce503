// torch.ops.affinity_pool on the CPU: arguments are checked, outputs allocated, the work is Pooling's.
#include <torch/csrc/stable/library.h>

#include <cstring>
#include <numeric>
#include <vector>

#include "../checks.h"
#include "../namespace.h"
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

// Runs `pooling` on as many threads as there is work for.
template <class Run>
void run(Pooling& pooling, const std::vector<Sequence>& sequences, int64_t row_bytes, Run on) {
  int64_t bytes = 0;
  for (const Sequence& sequence : sequences) bytes += sequence.length * row_bytes;
  constexpr int64_t kBytesPerThread = 128 << 10;  // 10 us of work, about what it costs to wake a thread
  const int64_t threads = std::clamp<int64_t>(bytes / kBytesPerThread, 1, torch::stable::get_num_threads());
  on(pooling, threads, [threads](int64_t n, const auto& f) {
    if (threads == 1)
      f(0, n);
    else
      torch::stable::parallel_for(0, n, 1, f);
  });
}

struct ByThreshold {
  double threshold;
  int64_t window;

  void check(const std::vector<Sequence>&) const {}
  int64_t most_groups(const std::vector<Sequence>&, int64_t rows) const { return rows; }
  template <class ParallelFor>
  void operator()(Pooling& pooling, int64_t threads, ParallelFor parallel_for) const {
    pooling.by_threshold(MatchRule{threshold}, static_cast<int>(window), threads, parallel_for);
  }
};

// Rows of each sequence, or none: a share.
class ByCount {
 public:
  ByCount(int64_t batch, double share, const Ints& rows, const std::optional<Tensor>& rows_tensor)
      : share_(share), counts_(rows || rows_tensor) {
    if (!counts_) return;
    rows_.resize(batch);
    const int32_t* given = rows_tensor ? rows_tensor->const_data_ptr<int32_t>() : nullptr;
    for (int64_t b = 0; b < batch; ++b)
      rows_[b] = given != nullptr ? given[b] : static_cast<int32_t>((*rows)[rows->size() == 1 ? 0 : b]);
  }

  // Refuses numbers that sequences cannot have.
  void check(const std::vector<Sequence>& sequences) const {
    for (size_t b = 0; b < rows_.size(); ++b) {
      const int64_t length = sequences[b].length;
      STD_TORCH_CHECK(rows_[b] >= std::min<int64_t>(length, 1) && rows_[b] <= length, "keep must be ",
                      length > 0 ? "in 1.." : "", length, " for the ", length, " rows of sequence ", b, ", got ",
                      rows_[b]);
    }
  }

  // As many as there will be.
  int64_t most_groups(const std::vector<Sequence>& sequences, int64_t) const {
    if (counts_) return std::accumulate(rows_.begin(), rows_.end(), int64_t{0});
    int64_t groups = 0;
    for (const Sequence& sequence : sequences) {
      const bool* may_merge = sequence.rows.mergeable;
      for (int64_t begin = 0, end = 0; begin < sequence.length; begin = end) {
        end = may_merge == nullptr ? sequence.length : begin + 1;
        while (end < sequence.length && may_merge[begin] && may_merge[end]) ++end;
        groups += rows_left(end - begin, share_);
      }
    }
    return groups;
  }

  template <class ParallelFor>
  void operator()(Pooling& pooling, int64_t threads, ParallelFor parallel_for) const {
    pooling.by_count(Promise{share_, counts_ ? rows_.data() : nullptr}, threads, parallel_for);
  }

 private:
  const double share_;
  const bool counts_;
  std::vector<int32_t> rows_;
};

template <class Rule>
Outputs pool_packed(const Tensor& x_in, int64_t batch, const std::optional<Tensor>& cu_seqlens_in,
                    const std::optional<Tensor>& mergeable_in, const Rule& rule) {
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

  // By threshold, the number of groups is known when the last has been written: the outputs are the front of buffers.
  rule.check(sequences);
  const int64_t most = rule.most_groups(sequences, rows);
  Tensor values = torch::stable::new_empty(x, {most, dim}), counts = int32_empty(x, {most});
  Tensor cu_seqlens_out = int32_empty(x, {batch + 1}), segment_ids = int32_empty(x, {rows});
  int32_t* cu_out = cu_seqlens_out.mutable_data_ptr<int32_t>();
  Pooling pooling(kernels(dtype_of(x)), sequences,
                  {static_cast<char*>(values.mutable_data_ptr()), dim * element,
                   segment_ids.mutable_data_ptr<int32_t>(), counts.mutable_data_ptr<int32_t>(), cu_out + 1, 0, false});
  run(pooling, sequences, dim * element, rule);
  cu_out[0] = 0;
  for (int64_t b = 0; b < batch; ++b) cu_out[b + 1] += cu_out[b];
  const int64_t groups = cu_out[batch];
  return {torch::stable::narrow(values, 0, 0, groups), cu_seqlens_out, segment_ids,
          torch::stable::narrow(counts, 0, 0, groups)};
}

template <class Rule>
Outputs pool_batch(const Tensor& x_in, const std::optional<Tensor>& lengths_in,
                   const std::optional<Tensor>& mergeable_in, bool left_padded, const Rule& rule) {
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

  rule.check(sequences);
  Tensor values = torch::stable::new_empty(x, {batch, width, dim}), lengths_out = int32_empty(x, {batch});
  Tensor segment_ids = int32_empty(x, {batch, width}), counts = int32_empty(x, {batch, width});
  int32_t* ids = segment_ids.mutable_data_ptr<int32_t>();
  int32_t* sizes = counts.mutable_data_ptr<int32_t>();
  const Output output{static_cast<char*>(values.mutable_data_ptr()), dim * element, ids,        sizes,
                      lengths_out.mutable_data_ptr<int32_t>(),       width,         left_padded};
  Pooling pooling(kernels(dtype_of(x)), sequences, output);
  run(pooling, sequences, dim * element, rule);
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

Outputs pool(const Tensor& x, const std::optional<Tensor>& cu_seqlens, const std::optional<Tensor>& mergeable,
             double threshold, int64_t window) {
  const int64_t batch = check_packed(x, cu_seqlens, mergeable);
  check_rule(threshold, window);
  return pool_packed(x, batch, cu_seqlens, mergeable, ByThreshold{threshold, window});
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
  return pool_packed(x, batch, cu_seqlens, mergeable, ByCount(batch, share, rows, dense(rows_tensor)));
}

Outputs pool_padded_to(const Tensor& x, const std::optional<Tensor>& lengths, const std::optional<Tensor>& mergeable,
                       double share, const Ints& rows, const std::optional<Tensor>& rows_tensor, bool left_padded) {
  check_padded(x, lengths, mergeable);
  check_keep(x, x.size(0), lengths, mergeable, share, rows, rows_tensor);
  return pool_batch(x, lengths, mergeable, left_padded, ByCount(x.size(0), share, rows, dense(rows_tensor)));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(AFFINITY_POOL_NAMESPACE, CPU, m) {
  m.impl("pool", TORCH_BOX(&pool));
  m.impl("pool_padded", TORCH_BOX(&pool_padded));
  m.impl("pool_to", TORCH_BOX(&pool_to));
  m.impl("pool_padded_to", TORCH_BOX(&pool_padded_to));
}

}  // namespace affinity_pool::cpu
