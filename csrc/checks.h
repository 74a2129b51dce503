// What the ops refuse below Python, shared by the devices; affinity_pool/checks.py says the same to Python callers.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <vector>

#include "algebra.h"
#include "tensors.h"

namespace affinity_pool {

inline void check_rows(const Tensor& x, int64_t dims, const char* shape) {
  const ScalarType dtype = x.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16,
                  "x must be float32, float16 or bfloat16");
  STD_TORCH_CHECK(x.dim() == dims, "x must have shape ", shape, ", got ", x.dim(), " dimensions");
  STD_TORCH_CHECK(x.size(dims - 1) > 0, "x must have at least one feature in its last dimension");
}

inline void check_sizes(int64_t rows, int64_t dim) {
  STD_TORCH_CHECK(rows <= INT32_MAX, "x must have at most 2^31 - 1 rows, got ", rows);
  STD_TORCH_CHECK(dim <= INT32_MAX, "x must have at most 2^31 - 1 features, got ", dim);
}

inline void check_rule(double threshold, int64_t window) {
  STD_TORCH_CHECK(threshold == threshold,
                  "threshold must be a number, got NaN; use a threshold above 1 to merge nothing");
  STD_TORCH_CHECK(window >= 1 && window <= kMaxWindow, "window must be in 1..", kMaxWindow, " (tokens), got ", window);
}

inline void check_index(const char* name, const Tensor& index, const Tensor& x) {
  STD_TORCH_CHECK(index.scalar_type() == ScalarType::Int, name, " must be int32");
  STD_TORCH_CHECK(index.dim() == 1, name, " must have one dimension, got ", index.dim());
  STD_TORCH_CHECK(index.device() == x.device(), name, " must be on the device of x");
}

// `entries` of cu_seqlens, or 2 if there is none: what its shape alone tells.
inline void check_sequences(int64_t entries, int64_t rows) {
  STD_TORCH_CHECK(entries > 0, "cu_seqlens must have B + 1 entries for B sequences, so at least one, got none");
  STD_TORCH_CHECK(entries <= INT32_MAX, "cu_seqlens must have fewer than 2^31 entries, got ", entries);
  STD_TORCH_CHECK(entries > 1 || rows == 0, "cu_seqlens must end at the ", rows, " rows of x, got 0");
}

inline void check_mergeable(const std::optional<Tensor>& mergeable, const Tensor& x) {
  if (!mergeable) return;
  STD_TORCH_CHECK(mergeable->scalar_type() == ScalarType::Bool, "mergeable must be a bool tensor");
  STD_TORCH_CHECK(mergeable->device() == x.device(), "mergeable must be on the device of x");
  bool same = mergeable->dim() == x.dim() - 1;
  for (int64_t i = 0; same && i < mergeable->dim(); ++i) same = mergeable->size(i) == x.size(i);
  STD_TORCH_CHECK(same, "mergeable must have the shape of x without its last dimension, one flag a row");
}

// Of a packed op: how many sequences there are.
inline int64_t check_packed(const Tensor& x, const std::optional<Tensor>& cu_seqlens,
                            const std::optional<Tensor>& mergeable) {
  check_rows(x, 2, "[N, D]");
  check_mergeable(mergeable, x);
  if (cu_seqlens) check_index("cu_seqlens", *cu_seqlens, x);
  const int64_t rows = x.size(0), entries = cu_seqlens ? cu_seqlens->size(0) : 2;
  check_sizes(rows, x.size(1));
  check_sequences(entries, rows);
  return entries - 1;
}

inline void check_padded(const Tensor& x, const std::optional<Tensor>& lengths,
                         const std::optional<Tensor>& mergeable) {
  check_rows(x, 3, "[B, T, D]");
  check_mergeable(mergeable, x);
  if (!lengths) return;
  check_index("lengths", *lengths, x);
  STD_TORCH_CHECK(lengths->size(0) == x.size(0), "lengths must have one entry for each of the ", x.size(0),
                  " sequences of x, got ", lengths->size(0));
}

using Ints = std::optional<std::vector<int64_t>>;

// How many rows are to be left: `rows`, one or one for each sequence, or `rows_tensor`, or a share of each run. Without
// `bounds` every sequence has all the rows that x has for one.
inline void check_keep(const Tensor& x, int64_t batch, const std::optional<Tensor>& bounds,
                       const std::optional<Tensor>& mergeable, double share, const Ints& rows,
                       const std::optional<Tensor>& rows_tensor) {
  STD_TORCH_CHECK(share > 0 && share <= 1, "share must be in (0, 1], got ", share);
  STD_TORCH_CHECK(!rows || !rows_tensor, "rows and rows_tensor must not both be given");
  STD_TORCH_CHECK(!mergeable || !(rows || rows_tensor), "mergeable must be None if rows are given, not a share");
  if (rows) {
    const int64_t entries = static_cast<int64_t>(rows->size());
    STD_TORCH_CHECK(entries == batch || entries == 1, "rows must be one int, or one for each of the ", batch,
                    " sequences of x, got ", entries);
    const int64_t most = x.size(x.dim() - 2), least = bounds || batch == 0 ? 0 : std::min<int64_t>(most, 1);
    for (const int64_t left : *rows)
      STD_TORCH_CHECK(left >= least && left <= most, "rows must be in ", least, "..", most, ", got ", left);
  }
  if (!rows_tensor) return;
  check_index("rows_tensor", *rows_tensor, x);
  STD_TORCH_CHECK(rows_tensor->size(0) == batch, "rows_tensor must have one entry for each of the ", batch,
                  " sequences of x, got ", rows_tensor->size(0));
}

}  // namespace affinity_pool
