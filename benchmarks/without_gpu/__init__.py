"""What is known of the CUDA kernel without a GPU: read from the compiler, modelled, predicted. None is a measurement.

``cost_model`` says what a call should cost; ``cuda_static`` reads registers, spills and instructions from nvcc, with
``cuda_work`` (instructions of a tile) and ``sass`` (machine code as a graph); ``matrix_sums`` what a similarity loses
in matrix instructions. Each is a program: ``python -m affinity_pool.benchmarks.without_gpu.cost_model``.
"""
