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
AP_DEVICE void store_relaxed(uint64_t* p, uint64_t v) {
  asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
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
AP_DEVICE void pause() { __nanosleep(20); }

// 16 bytes at a time, at addresses that are multiples of 16.
AP_DEVICE void copy_async(void* shared, const void* global) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}
AP_DEVICE void copies_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }
AP_DEVICE uint4 load_constant(const void* p) { return __ldg(static_cast<const uint4*>(p)); }
AP_DEVICE float4 load_exchanged(const float* p) { return __ldcg(reinterpret_cast<const float4*>(p)); }

AP_DEVICE float bits_to_float(uint32_t bits) { return __uint_as_float(bits); }
AP_DEVICE uint32_t float_to_bits(float f) { return __float_as_uint(f); }
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

AP_DEVICE unsigned char* dynamic_shared_memory() {
  extern __shared__ __align__(16) unsigned char affinity_pool_shared[];
  return affinity_pool_shared;
}

}  // namespace affinity_pool::cuda
#else
#include "emulator.h"
#endif
