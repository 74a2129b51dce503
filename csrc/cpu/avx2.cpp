// The row kernels for x86-64 processors with AVX2, FMA and F16C (2013 and later).
#define AP_ISA avx2
#define AP_TARGET "avx2,fma,f16c"
#define AP_LANES 8
#define AP_STEP_ROWS 2
#include "x86.h"
