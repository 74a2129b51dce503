// The row kernels of the CPU backend, compiled once per instruction set and chosen at load time.
#pragma once

#include <cstdint>

#include "../algebra.h"

namespace affinity_pool::cpu {

constexpr double kBegins = NAN;

enum class Dtype { kFloat32, kFloat16, kBFloat16 };

// Rows of one sequence. Row t starts at data + t * stride (elements); t = 0 is the first row of the sequence.
struct Rows {
  const void* data;
  int64_t stride;
  int64_t dim;
  const bool* mergeable;  // one flag a row, or null: all may merge
};

struct Kernels {
  // k(t) of rows begin..end of the sequence; reads up to `window` rows before them.
  void (*nearest_match)(const Rows&, int64_t begin, int64_t end, MatchRule, int window, uint8_t* k);
  // The link of rows begin..end to the row before each, or kBegins where a run begins.
  void (*links)(const Rows&, int64_t begin, int64_t end, double* link);
  // Mean of rows begin..end, or a copy if there is but one. Rows end..next_end are prefetched meanwhile.
  void (*mean)(const Rows&, int64_t begin, int64_t end, int64_t next_end, void* out);
};

namespace portable {
const Kernels& kernels(Dtype);
}
#ifdef __x86_64__
namespace avx2 {
const Kernels& kernels(Dtype);
}
namespace avx512 {
const Kernels& kernels(Dtype);
}
namespace avx512_bf16 {
const Kernels& kernels(Dtype);
}
#endif

// The widest instruction set that this processor has: "portable", "avx2", "avx512" or "avx512_bf16".
const char* instruction_set();
const Kernels& kernels(Dtype);

}  // namespace affinity_pool::cpu
