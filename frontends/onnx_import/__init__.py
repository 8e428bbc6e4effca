"""The steps of the ONNX import: the file, its nodes bound to torch functions, the module that executes them."""
