"""The contenders of `tests.bench.training_step`: one network, built as each framework's users would build it."""
