// The row kernels for x86-64 processors with AVX2, FMA and F16C (2013 and later).
#ifdef __x86_64__
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "kernels.h"
// The headers above stay outside: their inline functions must run on every processor.
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define AP_ISA avx2
#define AP_LANES 8
#define AP_STEP_ROWS 2
#define AP_HALF_INTRINSICS
namespace affinity_pool::cpu::avx2 {
namespace {
inline __m256 widen_half(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
template <class V>
void narrow_half(uint16_t* p, V v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}
}  // namespace
}  // namespace affinity_pool::cpu::avx2
#include "rows.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
