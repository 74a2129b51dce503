// Matrix instructions for 16-bit floats, as published models of the hardware have them.
//
// Products are exact. Eight of them and the sum so far are aligned to the largest, cut below 25 bits, added exactly,
// and the result is cut to a float: bit for bit an A100's, says arXiv:2512.07004; an H100 takes sixteen at a time and
// keeps a bit more. What overflows becomes the largest float here, which is the worst that cutting could make of it.
#include <algorithm>
#include <limits>

#include "emulator.h"

namespace {

constexpr int kTogether = 8, kBits = 25, kDepth = 16;

float cut(double v) {
  constexpr float kLargest = std::numeric_limits<float>::max();
  if (std::abs(v) > kLargest) return v > 0 ? kLargest : -kLargest;
  const float rounded = static_cast<float>(v);
  return std::abs(rounded) > std::abs(v) ? std::nextafter(rounded, 0.0f) : rounded;
}

float add_products(float sum, const double* products) {
  double plain = sum, largest = std::abs(plain);
  for (int i = 0; i < kTogether; ++i) {
    plain += products[i];
    largest = std::max(largest, std::abs(products[i]));
  }
  if (!std::isfinite(plain)) return static_cast<float>(plain);
  if (largest == 0) return 0;
  const double unit = std::ldexp(1.0, std::ilogb(largest) + 1 - kBits);
  double units = std::trunc(sum / unit);
  for (int i = 0; i < kTogether; ++i) units += std::trunc(products[i] / unit);
  return cut(units * unit);
}

template <class Widen>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Widen widen) {
  const emulator::Operands mine = {a[0], a[1], a[2], a[3], b0, b1};
  const emulator::Operands* of = emulator::exchange(mine);
  const int lane = static_cast<int>(emulator::current->thread.x % 32), g = lane / 4, q = lane % 4;
  // Features 2q and 2q + 1 of a row or column are in the first of two words of lane q of its four, 2q + 8 in the
  // second.
  const auto features = [&](int at, int word, int second, double* to) {
    for (int feature = 0; feature < kDepth; ++feature) {
      const uint32_t pair = of[4 * at + feature % 8 / 2][feature < 8 ? word : second];
      to[feature] = widen(static_cast<uint16_t>(feature % 2 == 0 ? pair : pair >> 16));
    }
  };
  double row[2][kDepth], column[2][kDepth], products[kDepth];
  features(g, 0, 2, row[0]);
  features(g, 1, 3, row[1]);
  for (int j = 0; j < 2; ++j) features(2 * q + j, 4, 5, column[j]);
  for (int i = 0; i < 4; ++i) {
    for (int k = 0; k < kDepth; ++k) products[k] = row[i / 2][k] * column[i % 2][k];
    for (int k = 0; k < kDepth; k += kTogether) d[i] = add_products(d[i], products + k);
  }
}

}  // namespace

namespace affinity_pool::cuda {

void multiply_add_bfloat16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_add(d, a, b0, b1, [](uint16_t bits) { return bits_to_float(static_cast<uint32_t>(bits) << 16); });
}
void multiply_add_half(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_add(d, a, b0, b1, half_to_float);
}

}  // namespace affinity_pool::cuda
