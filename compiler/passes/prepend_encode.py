"""Puts an encoding in front of a network that takes spikes, so that it takes images."""

from __future__ import annotations

from dataclasses import dataclass, replace

from compiler.ir import DType, Encoding, Graph, Node
from compiler.ir.ops import Encode, Input


@dataclass(frozen=True, slots=True)
class PrependEncode:
    """Encode a real-valued input over time, with the seed of the draws for a Bernoulli encoding.

    Needs: a network whose input is a sequence. Ensures: the same network on the encoded input.
    """

    kind: Encoding
    seed: int = 0

    def __call__(self, graph: Graph) -> Graph:
        source = graph.input
        kind = graph.types[source.name]
        if not kind.has("T"):
            raise graph.site(source).fail("takes no sequence, so there is nothing to encode")
        image = kind.without("T")
        given = Input(shape=image.shape, dtype=DType.F32, axes=image.axes)
        seed = self.seed if self.kind is Encoding.BERNOULLI else None
        encode = Node(
            f"{source.name}.encoded",
            Encode(kind=self.kind, timesteps=kind.size("T"), seed=seed),
            (source.name,),
            source.loc,
        )
        nodes: list[Node] = []
        for node in graph.nodes:
            if node is source:
                nodes += [replace(node, op=given), encode]
            else:
                inputs = tuple(encode.name if name == source.name else name for name in node.inputs)
                nodes.append(replace(node, inputs=inputs))
        return graph.with_nodes(tuple(nodes))
