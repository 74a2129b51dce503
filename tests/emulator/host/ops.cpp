// csrc/cuda/affinity_pool.cpp as the CPU's implementation of the ops: behind torch's headers, CUDA stands for CPU.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#define CUDA CPU
#include "cuda/affinity_pool.cpp"
