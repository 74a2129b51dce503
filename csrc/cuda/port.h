// What the kernel asks of the machine beyond C++. Without nvcc the same names come from tests/emulator, which executes
// the kernel on the CPU.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#include <cuda_fp16.h>
#define AP_DEVICE __device__ __forceinline__

namespace affinity_pool::cuda {

// Words that blocks exchange within a launch. Relaxed words carry their own validity; a release after a barrier makes
// the stores of the whole block visible to a block that passes a barrier after the acquire.
AP_DEVICE uint64_t load_relaxed(const uint64_t* p) {
  uint64_t v;
  asm volatile("ld.relaxed.gpu.global.b64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
  return v;
}
AP_DEVICE void load_relaxed(const uint64_t* p, uint64_t& first, uint64_t& second) {  // at a multiple of 16
  asm volatile("ld.relaxed.gpu.global.v2.b64 {%0, %1}, [%2];" : "=l"(first), "=l"(second) : "l"(p) : "memory");
}
AP_DEVICE void store_relaxed(uint64_t* p, uint64_t v) {
  asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
}
AP_DEVICE void store_relaxed(uint32_t* p, uint32_t v) {
  asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
AP_DEVICE uint32_t load_acquire(const uint32_t* p) {
  uint32_t v;
  asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
AP_DEVICE void store_release(uint32_t* p, uint32_t v) {
  asm volatile("st.release.gpu.global.b32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
AP_DEVICE uint64_t fetch_add_relaxed(uint64_t* p, uint64_t v) {
  uint64_t old;
  asm volatile("atom.relaxed.gpu.global.add.u64 %0, [%1], %2;" : "=l"(old) : "l"(p), "l"(v) : "memory");
  return old;
}
AP_DEVICE void add_one(int* shared) { atomicAdd(shared, 1); }
AP_DEVICE void pause(unsigned nanoseconds) { __nanosleep(nanoseconds); }

// 16 bytes at a time, at addresses that are multiples of 16.
AP_DEVICE void copy_async(void* shared, const void* global) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}
AP_DEVICE void copies_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }
AP_DEVICE uint4 load_constant(const void* p) { return __ldg(static_cast<const uint4*>(p)); }
AP_DEVICE void store_wide(void* p, uint4 v) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
AP_DEVICE float4 load_exchanged(const float* p) { return __ldcg(reinterpret_cast<const float4*>(p)); }

// A number that the compiler must not know.
AP_DEVICE int opaque(int v) {
  asm volatile("" : "+r"(v));
  return v;
}

AP_DEVICE float bits_to_float(uint32_t bits) { return __uint_as_float(bits); }
AP_DEVICE uint32_t float_to_bits(float f) { return __float_as_uint(f); }
AP_DEVICE uint64_t double_to_bits(double d) { return static_cast<uint64_t>(__double_as_longlong(d)); }
AP_DEVICE float half_to_float(uint16_t h) { return __half2float(__ushort_as_half(h)); }

// Two floats rounded to nearest even, the first in the lower half.
AP_DEVICE uint32_t pack_half(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
AP_DEVICE uint32_t pack_bfloat16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// d += a b for a warp: a has 16 rows of 16 features, b eight columns, of 16-bit floats in pairs. With g = lane / 4 and
// q = lane % 4, a lane gives of rows g and g + 8 the features 2q, 2q + 1 (a[0], a[1]) and 2q + 8, 2q + 9 (a[2], a[3]),
// the same features of column g (b0, b1), and has of rows g (d[0], d[1]) and g + 8 (d[2], d[3]) columns 2q and 2q + 1.
// Products are exact; sums have float32's 24 bits, but are cut where float32's would be rounded.
#define AP_MATRIX_MULTIPLY_ADD(name, type)                                               \
  AP_DEVICE void name(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                  \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "                   \
                 "{%0, %1, %2, %3};"                                                     \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                        \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));        \
  }
AP_MATRIX_MULTIPLY_ADD(multiply_add_bfloat16, "bf16")
AP_MATRIX_MULTIPLY_ADD(multiply_add_half, "f16")
#undef AP_MATRIX_MULTIPLY_ADD

AP_DEVICE unsigned char* dynamic_shared_memory() {
  extern __shared__ __align__(16) unsigned char affinity_pool_shared[];
  return affinity_pool_shared;
}

}  // namespace affinity_pool::cuda
#else
#include "emulator.h"
#endif
