"""Parts of the benchmark of layers with spike input."""
