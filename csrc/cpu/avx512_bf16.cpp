// The row kernels for x86-64 processors with AVX-512 and its bfloat16 dot product (2020 and later): half the
// instructions of a bfloat16 similarity, 750 rows of 4096 in 0.14 ms instead of 0.26.
#ifdef __x86_64__
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "kernels.h"
// The headers above stay outside: their inline functions must run on every processor.
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bf16,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bf16,avx2,fma,f16c")
#endif

#define AP_ISA avx512_bf16
#define AP_LANES 16
#define AP_STEP_ROWS 4
#define AP_HALF_INTRINSICS
#define AP_BFLOAT16_DOT
namespace affinity_pool::cpu::avx512_bf16 {
namespace {
inline __m512 widen_half(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
template <class V>
void narrow_half(uint16_t* p, V v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
}
// Products of neighbours are added in float32, then to the sum.
template <class U, class V>
V bfloat16_dot(U a, U b, V sum) {
  return (V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
}  // namespace
}  // namespace affinity_pool::cpu::avx512_bf16
#include "rows.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
