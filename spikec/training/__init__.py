"""Training on any backend: one loop, one kind of checkpoint."""
