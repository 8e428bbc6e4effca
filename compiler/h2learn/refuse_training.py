"""Refuses networks that H2Learn cannot train, before anything is compiled."""

from __future__ import annotations

from compiler.ir import DType, Graph, Node, SurrogateKind
from compiler.ir.ops import AvgPool2d, BatchNorm, Conv2d, Lif, Linear, MaxPool2d, Readout, Scale
from hwmodel.errors import CompileError


def check_trainable(graph: Graph) -> None:
    """Refuse ops without a gradient unit, and outputs that are no class scores.

    Raises: CompileError with the node and a hint.
    """
    for node in graph.nodes:
        _check_node(graph, node)
    if not any(isinstance(node.op, Conv2d | Linear) for node in graph.nodes):
        raise CompileError("the network has no weights to train", graph.input.loc)
    if not any(isinstance(node.op, Readout) for node in graph.nodes):
        raise CompileError(
            "the network has no readout over time, so that there are no scores to take a loss of",
            graph.input.loc,
            hint="end the network in the mean over time",
        )
    output = graph.types[graph.output]
    if output.axes != "NC":
        raise CompileError(f"the output {output} is no vector of class scores", graph.input.loc)


def _check_node(graph: Graph, node: Node) -> None:
    site = graph.site(node)
    match node.op:
        case BatchNorm():
            raise site.fail(
                "H2Learn has no unit for the statistics of a batch norm",
                "fold it into the weights first (--fold-batch-norm), or use the torch backend",
            )
        case Scale():
            raise site.fail("H2Learn has no unit for a scale", "multiply it into the weights first")
        case Lif(surrogate=surrogate) if surrogate.kind is not SurrogateKind.RECTANGLE:
            raise site.fail(
                f"the Grad unit has the rectangular surrogate of equation 2.6, not {surrogate.kind}",
                "use Surrogate(kind=rectangle), or the torch backend",
            )
        case AvgPool2d() | MaxPool2d() as pool:
            if pool.kernel != pool.stride or pool.padding != (0, 0):
                raise site.fail(
                    "the Grad unit takes pooling windows side by side, without padding",
                    "make the stride the kernel size and the padding 0, or use the torch backend",
                )
            if isinstance(pool, MaxPool2d) and graph.types[node.inputs[0]].dtype is DType.SPIKE:
                source = graph.node(node.inputs[0])
                if not isinstance(source.op, Lif):
                    raise site.fail("a maximum of spikes must stand directly behind its neuron to be trained")
