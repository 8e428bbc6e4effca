"""The steps of the ONNX export: a writer of nodes, one rule for each op, neurons as functions over time."""
