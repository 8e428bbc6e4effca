"""The steps from a network with ReLU to one of integrate-and-fire neurons: import, sampling, balancing, measuring."""
