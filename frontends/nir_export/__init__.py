"""The nodes of a graph as nodes of a NIR file."""
