// The row kernels for any processor: four float lanes, which is SSE2 on x86-64 and NEON on aarch64.
#define AP_ISA portable
#define AP_LANES 4
#define AP_STEP_ROWS 2
#include "rows.h"
