// rows.h for one instruction set of x86-64, included once by the file of each: AP_TARGET lists its features for the
// compiler, the rest is as rows.h says. With AP_BFLOAT16_DOT, bfloat16 rows are multiplied by its dot product.
#ifdef __x86_64__
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <type_traits>

#include "kernels.h"

#define AP_PRAGMA(text) _Pragma(#text)
// The headers above stay outside: their inline functions must run on every processor.
#ifdef __clang__
#define AP_TARGET_PRAGMA(features) \
  AP_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
AP_TARGET_PRAGMA(AP_TARGET)
#else
#define AP_TARGET_PRAGMA(features) AP_PRAGMA(GCC target(features))
#pragma GCC push_options
AP_TARGET_PRAGMA(AP_TARGET)
#endif

#define AP_HALF_INTRINSICS
namespace affinity_pool::cpu::AP_ISA {
namespace {

#if AP_LANES == 8
inline __m256 widen_half(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
template <class V>
void narrow_half(uint16_t* p, V v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}
#else
inline __m512 widen_half(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
template <class V>
void narrow_half(uint16_t* p, V v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
}
#endif

#ifdef AP_BFLOAT16_DOT
// Products of neighbours are added in float32, then to the sum.
template <class U, class V>
V bfloat16_dot(U a, U b, V sum) {
  return (V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
#endif

}  // namespace
}  // namespace affinity_pool::cpu::AP_ISA

#include "rows.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
