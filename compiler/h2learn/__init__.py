"""From a graph to an H2Learn program, stage by stage."""
