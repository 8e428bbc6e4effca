"""The steps of the PyTorch import: neurons made opaque, the trace, its axes, one rule for each operator."""
