"""The checker of certificates: it shares no code with what finds bounds, only the graph and the file format."""
