"""NIR files: the HDF5 container, without any meaning of the nodes in it."""
