"""Samples to train and to test on, and whether they fit the network."""

from __future__ import annotations

from compiler.ir import Graph
from frontends.datasets import Samples, train_and_test
from hwmodel.errors import CompileError, Loc


def training_data(data: str, graph: Graph) -> tuple[Samples, Samples]:
    """The training and the test set of a data set by name.

    Raises: CompileError for an unknown data set, one without labels, or one that does not fit the network.
    """
    sets = train_and_test(data)
    for samples in sets:
        _check(samples, graph, Loc(f"data {data}"))
    return sets


def classes_of(graph: Graph) -> int:
    """How many classes the network tells apart.

    Raises: CompileError for an output that is no vector of class scores.
    """
    output = graph.types[graph.output]
    if output.axes != "NC":
        raise CompileError(
            f"the output {output} is no vector of class scores",
            graph.input.loc,
            hint="end the network in the mean over time",
        )
    return output.size("C")


def _check(samples: Samples, graph: Graph, loc: Loc) -> None:
    if not samples.labelled:
        raise CompileError("has no labels to train on", loc)
    if not len(samples):
        raise CompileError("has too few samples to train on some and test on others", loc)
    kind = graph.types[graph.input.name]
    shape = ("N", *samples.x.shape[1:])
    if samples.has_time:
        shape = (samples.x.shape[1], "N", *samples.x.shape[2:])
    if shape != kind.shape:
        raise CompileError(f"samples are ({', '.join(map(str, shape))}), the network takes {kind}", loc)
    classes = classes_of(graph)
    if samples.y.max() >= classes:
        raise CompileError(f"a label is {samples.y.max()}, the network has {classes} classes", loc)
