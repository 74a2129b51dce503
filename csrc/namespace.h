// torch.ops.<this> are the ops that the library registers kernels for. A build for the Kernels Hub defines another
// (hub/build.toml), and Python finds it in affinity_pool/_ops.py.
#pragma once

#ifndef AFFINITY_POOL_NAMESPACE
#define AFFINITY_POOL_NAMESPACE affinity_pool
#endif
