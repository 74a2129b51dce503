// CUDA's thread hierarchy on the CPU, for tests: the kernel source is compiled as plain C++ against this header.
//
// Every GPU thread is a fiber; all run on one OS thread, one at a time, switched at barriers, warp collectives, atomics
// and waits, in an order drawn from a seed. So every interleaving of atomics that the seeds reach is executed, while
// the values a thread sees are the machine's own; orders that only a weaker memory model allows are ThreadSanitizer's
// to find (every fiber is a thread to it, and it knows of barriers, collectives and atomics, nothing else).
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>

namespace emulator {

struct Launch {
  unsigned grid, block;   // blocks, threads of a block
  size_t shared_bytes;    // dynamic shared memory, filled with 0xCD when a block starts
  unsigned resident = 4;  // blocks that run at a time
  enum Order { kAscending, kRandom, kDescending } order = kRandom;  // in which blocks start
  unsigned yield_percent = 20;                                      // chance of a switch at an atomic
  uint64_t seed = 0;
};

// Runs the kernel for every thread of the launch. Returns "" or what went wrong: a deadlock, a divergent collective, a
// misaligned access.
std::string run(const Launch& launch, const std::function<void()>& kernel);

struct Index {
  unsigned x;
};
struct Thread {
  Index thread, block, blocks, threads;
  unsigned char* shared;
};
extern Thread* current;

enum class Collective { kShuffleXor, kShuffle, kBallot, kSync, kMultiply };
uint32_t collective(Collective kind, uint32_t mask, uint32_t value, int argument);
using Operands = uint32_t[6];                    // what a lane gives to a matrix multiplication
const Operands* exchange(const Operands& mine);  // of all lanes, until the warp's next collective but one
bool barrier(bool value, bool reduces);
void before_atomic();  // other threads may run first
void after_store();    // who waits looks again
void wait();           // until someone has stored since the thread last waited
void fail(const char* what);

template <class T>
T shuffle(Collective kind, unsigned mask, T value, int argument) {
  static_assert(sizeof(T) == 4);
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits = collective(kind, mask, bits, argument);
  std::memcpy(&value, &bits, 4);
  return value;
}

template <class T>
T load_aligned(const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) fail("misaligned 16-byte load");
  return *static_cast<const T*>(p);
}

}  // namespace emulator

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

#define threadIdx (emulator::current->thread)
#define blockIdx (emulator::current->block)
#define gridDim (emulator::current->blocks)
#define blockDim (emulator::current->threads)

inline void __syncthreads() { emulator::barrier(false, false); }
inline int __syncthreads_or(int v) { return emulator::barrier(v != 0, true); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulator::collective(emulator::Collective::kSync, mask, 0, 0); }
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int lanes) {
  return emulator::shuffle(emulator::Collective::kShuffleXor, mask, v, lanes);
}
template <class T>
T __shfl_sync(unsigned mask, T v, int lane) {
  return emulator::shuffle(emulator::Collective::kShuffle, mask, v, lane);
}
inline unsigned __ballot_sync(unsigned mask, bool v) {
  return emulator::collective(emulator::Collective::kBallot, mask, v, 0);
}
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v)); }
inline int __ffs(int v) { return __builtin_ffs(v); }

#define AP_DEVICE inline

// csrc/cuda/port.h, for the CPU.
namespace affinity_pool::cuda {

inline uint64_t load_relaxed(const uint64_t* p) {
  emulator::before_atomic();
  return __atomic_load_n(p, __ATOMIC_RELAXED);
}
inline void load_relaxed(const uint64_t* p, uint64_t& first, uint64_t& second) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) emulator::fail("misaligned 16-byte load");
  first = load_relaxed(p);
  second = load_relaxed(p + 1);
}
template <class Word>
void store_relaxed(Word* p, Word v) {
  emulator::before_atomic();
  __atomic_store_n(p, v, __ATOMIC_RELAXED);
  emulator::after_store();
}
inline uint32_t load_acquire(const uint32_t* p) {
  emulator::before_atomic();
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
inline void store_release(uint32_t* p, uint32_t v) {
  emulator::before_atomic();
  __atomic_store_n(p, v, __ATOMIC_RELEASE);
  emulator::after_store();
}
inline uint64_t fetch_add_relaxed(uint64_t* p, uint64_t v) {
  emulator::before_atomic();
  return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
inline void add_one(int* shared) {
  emulator::before_atomic();
  __atomic_fetch_add(shared, 1, __ATOMIC_RELAXED);
}
inline void pause(unsigned) { emulator::wait(); }

// An asynchronous copy must not be read before the wait: until then its place holds something else.
void copy_async(void* shared, const void* global);
void copies_wait();
inline uint4 load_constant(const void* p) { return emulator::load_aligned<uint4>(p); }
inline void store_wide(void* p, uint4 v) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) emulator::fail("misaligned 16-byte store");
  *static_cast<uint4*>(p) = v;
}
inline float4 load_exchanged(const float* p) { return emulator::load_aligned<float4>(p); }

inline int opaque(int v) { return v; }

inline float bits_to_float(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline uint32_t float_to_bits(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return bits;
}
inline uint64_t double_to_bits(double d) {
  uint64_t bits;
  std::memcpy(&bits, &d, 8);
  return bits;
}
inline float half_to_float(uint16_t h) {
  _Float16 f;
  std::memcpy(&f, &h, 2);
  return static_cast<float>(f);
}
inline uint32_t pack_half(float low, float high) {
  const _Float16 pair[2] = {static_cast<_Float16>(low), static_cast<_Float16>(high)};
  uint32_t packed;
  std::memcpy(&packed, pair, 4);
  return packed;
}
inline uint32_t pack_bfloat16(float low, float high) {
  const auto rounded = [](float f) {
    const uint32_t bits = float_to_bits(f);
    return f != f ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  };
  return rounded(low) | rounded(high) << 16;
}

void multiply_add_bfloat16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void multiply_add_half(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

inline unsigned char* dynamic_shared_memory() { return emulator::current->shared; }

}  // namespace affinity_pool::cuda
