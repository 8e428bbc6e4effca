"""Fused training kernels: neurons with their batch norm and pooling in one pass, recomputed instead of stored."""
