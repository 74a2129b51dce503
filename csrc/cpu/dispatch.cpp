// Chooses the row kernels for the processor it runs on.
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace affinity_pool::cpu {
namespace {

struct Choice {
  const char* name;
  const Kernels& (*kernels)(Dtype);
  bool runs_here;
};

Choice choose() {
#ifdef __x86_64__
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f");
  const bool avx512_bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
#endif
  const Choice narrow_to_wide[] = {
      {"portable", portable::kernels, true},
#ifdef __x86_64__
      {"avx2", avx2::kernels, avx2},
      {"avx512", avx512::kernels, avx512},
      {"avx512_bf16", avx512_bf16::kernels, avx512_bf16},
#endif
  };
  // AFFINITY_POOL_CPU names the widest to use, to test the others on one machine.
  const char* widest = std::getenv("AFFINITY_POOL_CPU");
  Choice chosen = narrow_to_wide[0];
  for (const Choice& choice : narrow_to_wide) {
    if (choice.runs_here) chosen = choice;
    if (widest != nullptr && std::strcmp(widest, choice.name) == 0) break;
  }
  return chosen;
}

const Choice& choice() {
  static const Choice chosen = choose();
  return chosen;
}

}  // namespace

const char* instruction_set() { return choice().name; }
const Kernels& kernels(Dtype dtype) { return choice().kernels(dtype); }

}  // namespace affinity_pool::cpu

// For affinity_pool.backends(), through ctypes.
extern "C" __attribute__((visibility("default"))) const char* affinity_pool_cpu_instruction_set() {
  return affinity_pool::cpu::instruction_set();
}
