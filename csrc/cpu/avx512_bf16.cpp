// The row kernels for x86-64 processors with AVX-512 and its bfloat16 dot product (2020 and later): half the
// instructions of a bfloat16 similarity, 750 rows of 4096 in 0.14 ms instead of 0.26.
#define AP_ISA avx512_bf16
#define AP_TARGET "avx512f,avx512bf16,avx2,fma,f16c"
#define AP_LANES 16
#define AP_STEP_ROWS 4
#define AP_BFLOAT16_DOT
#include "x86.h"
