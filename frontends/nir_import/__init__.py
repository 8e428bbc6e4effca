"""The nodes of a NIR file as nodes of a graph."""
