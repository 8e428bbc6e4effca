"""Everything that turns a graph into something else: the IR, its passes and its readings."""
