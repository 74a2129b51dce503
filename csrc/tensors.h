// What the ops do with tensors on every device.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <tuple>

namespace affinity_pool {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// Rows may lie at any stride, the elements of a row side by side.
inline Tensor dense_rows(const Tensor& x) {
  return x.stride(x.dim() - 1) == 1 || x.size(x.dim() - 1) == 1 ? x : torch::stable::contiguous(x);
}

inline std::optional<Tensor> dense(const std::optional<Tensor>& t) {
  return t ? std::optional(torch::stable::contiguous(*t)) : t;
}

inline Tensor int32_empty(const Tensor& x, std::initializer_list<int64_t> size) {
  return torch::stable::new_empty(x, size, ScalarType::Int);
}

}  // namespace affinity_pool
