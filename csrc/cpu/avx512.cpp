// The row kernels for x86-64 processors with AVX-512F.
#define AP_ISA avx512
#define AP_TARGET "avx512f,avx2,fma,f16c"
#define AP_LANES 16
#define AP_STEP_ROWS 4
#include "x86.h"
