"""Changes the number of time steps of a network."""

from __future__ import annotations

from dataclasses import dataclass, replace

from compiler.ir import CompileError, Graph, Node
from compiler.ir.ops import Encode, Input


@dataclass(frozen=True, slots=True)
class Retime:
    """Run the network for another number of time steps.

    Needs: a verified graph with a time axis. Ensures: the same network, `timesteps` long.
    Raises: CompileError if timesteps is not positive, or the encoding has a mask of a fixed length.
    """

    timesteps: int

    def __call__(self, graph: Graph) -> Graph:
        if self.timesteps < 1:
            raise CompileError(f"timesteps is {self.timesteps}, must be at least 1", graph.input.loc)
        if self.timesteps == graph.timesteps:
            return graph
        return graph.with_nodes(tuple(self._retimed(graph, node) for node in graph.nodes))

    def _retimed(self, graph: Graph, node: Node) -> Node:
        match node.op:
            case Encode(mask=mask) as op:
                if mask is not None:
                    raise graph.site(node).fail(f"mask {mask} fixes the number of time steps")
                return replace(node, op=replace(op, timesteps=self.timesteps))
            case Input(axes=axes) as op if "T" in axes:
                at = axes.index("T")
                shape = (*op.shape[:at], self.timesteps, *op.shape[at + 1 :])
                return replace(node, op=replace(op, shape=shape))
        return node
