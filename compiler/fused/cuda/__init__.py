"""CUDA C, binaries and launch tables of a network's fused kernels, made on a machine without a GPU."""
