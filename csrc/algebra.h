// The rules and the scan of Affinity Pooling, shared by every backend: no torch, host and device.
//
// For token t let k(t) be the distance, 1..window, to its nearest matching predecessor, or kNoMatch. With s the start
// of the open group, t joins iff t - k(t) >= s: if any match lies inside the group, the nearest one does. All work in
// the feature dimension is therefore k(t), which knows nothing of groups; what is left is a scan over bytes, in which
// the open group's length, capped at the window, is the whole state.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define AP_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define AP_HOST_DEVICE inline
#endif

namespace affinity_pool {

constexpr int kMaxWindow = 32;
constexpr uint8_t kNoMatch = 255;

// Product of two norms, in float64 from float32 sums: na * nb is exact in float64 and so is the root of a square.
AP_HOST_DEVICE double product_of_norms(float squared_norm_a, float squared_norm_b) {
  constexpr double kEps2 = 1e-16;  // square of the floor of a norm, 1e-8
  const double na = squared_norm_a > kEps2 ? squared_norm_a : kEps2;
  const double nb = squared_norm_b > kEps2 ? squared_norm_b : kEps2;
  return sqrt(na * nb);
}

// False for NaN too. A row that fails this matches nothing.
AP_HOST_DEVICE bool are_finite(float squared_norm_a, float squared_norm_b) {
  return squared_norm_a < HUGE_VALF && squared_norm_b < HUGE_VALF;
}

// cos(a, b) >= threshold, decided in float64: bit-identical rows match at threshold 1.
struct MatchRule {
  double threshold;

  AP_HOST_DEVICE bool operator()(float dot, float squared_norm_a, float squared_norm_b) const {
    if (!are_finite(squared_norm_a, squared_norm_b) || threshold > 1) return false;
    // Rounding can carry a dot below -|a||b|, so the end of the range is a rule of its own.
    if (threshold <= -1) return true;
    return dot >= threshold * product_of_norms(squared_norm_a, squared_norm_b);
  }
};

// What holds a row to the one before it, if a number of rows is promised: their cosine in float64, so that equal rows
// have equal links in every backend. A row that matches nothing has the weakest.
AP_HOST_DEVICE double link_of(float dot, float squared_norm_a, float squared_norm_b) {
  if (!are_finite(squared_norm_a, squared_norm_b)) return -HUGE_VAL;
  const double link = dot / product_of_norms(squared_norm_a, squared_norm_b) + 0.0;  // there is one zero
  return link == link ? link : -HUGE_VAL;
}

// Rows that a share leaves of a run. The product is rounded before the subtraction, as it is in Python.
AP_HOST_DEVICE int64_t rows_left(int64_t rows, double share) {
#ifdef __CUDA_ARCH__
  const double product = __dmul_rn(static_cast<double>(rows), share);
#else
  const volatile double product = static_cast<double>(rows) * share;
#endif
  const double left = ceil(product - 1e-9);
  return left < 1 ? (rows < 1 ? rows : 1) : left > static_cast<double>(rows) ? rows : static_cast<int64_t>(left);
}

// How many rows are left: of each run a share, or of sequence b so many.
struct Promise {
  double share = 1;
  const int32_t* rows = nullptr;  // of each sequence, or null:
  int32_t each = 0;               // of every sequence, or 0: a share

  // Of a sequence, and at least one; 0: a share.
  AP_HOST_DEVICE int32_t of(int64_t sequence) const {
    if (rows == nullptr) return each;
    return rows[sequence] < 1 ? 1 : rows[sequence];
  }
};

// Groups of a run, if `promised` rows are left of it, or 0: a share.
AP_HOST_DEVICE int64_t groups_of_run(int64_t rows, int64_t promised, double share) {
  if (promised == 0) return rows_left(rows, share);
  return promised < rows ? promised : rows;
}

// The open group of one sequence: `length` is its row count capped at the window, 0 before the first token.
struct OpenGroup {
  int window;
  int length = 0;

  // Takes the next token by its nearest match; true if it opens a new group.
  AP_HOST_DEVICE bool opens(uint8_t nearest_match) {
    if (nearest_match > length) {
      length = 1;
      return true;
    }
    if (length < window) ++length;
    return false;
  }
};

}  // namespace affinity_pool
