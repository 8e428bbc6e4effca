"""Runs the kernels of layers with spike input on torch tensors, and chooses among them."""
