"""Fused training under PyTorch: custom ops over the compiled kernels, and the module that calls them."""
