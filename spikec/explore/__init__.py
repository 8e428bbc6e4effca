"""Design-space exploration: throughput, energy and area of a network over configurations of the accelerator."""
