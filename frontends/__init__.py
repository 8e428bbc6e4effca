"""Networks enter here: PyTorch import, the neuron modules, the model zoo and the data sets."""
