"""Small networks written down as graphs: two convolutions and a linear layer on 8x8 images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from compiler.ir import DType, Encoding, Graph, Loc, Node, Param, Reading
from compiler.ir.file import save_graph
from compiler.ir.ops import Array, Conv2d, Encode, Flatten, Input, Lif, Linear, Op, Readout

STEPS = 4
OPS: dict[str, Op] = {
    "x": Input(shape=("N", 1, 8, 8), dtype=DType.F32, axes="NCHW"),
    "encode": Encode(kind=Encoding.DIRECT, timesteps=STEPS),
    "conv1": Conv2d(weight=Param("w1"), bias=Param("b1"), padding=(1, 1)),
    "lif1": Lif(decay=0.5, threshold=0.5),
    "conv2": Conv2d(weight=Param("w2"), padding=(1, 1)),
    "lif2": Lif(decay=1.0, threshold=1.0),
    "flat": Flatten(),
    "fc": Linear(weight=Param("w3")),
    "lif3": Lif(decay=0.5, threshold=0.5),
    "rate": Readout(kind=Reading.RATE),
}


def arrays() -> dict[str, Array]:
    """Weights with which every layer fires; the bias drives all neurons of the first one in every step."""
    rng = np.random.default_rng(0)
    return {
        "w1": rng.normal(0, 0.3, (4, 1, 3, 3)).astype(np.float32),
        "b1": np.full(4, 10, np.float32),
        "w2": rng.normal(0, 0.3, (5, 4, 3, 3)).astype(np.float32),
        "w3": rng.normal(0, 0.2, (10, 5 * 8 * 8)).astype(np.float32),
    }


def small_graph(weights: dict[str, Array] | None = None, **changed: dict[str, object]) -> Graph:
    """The network with other weights, and other fields of the named ops."""
    nodes: list[Node] = []
    for line, (name, op) in enumerate(OPS.items(), start=1):
        new = replace(op, **changed.get(name, {}))  # type: ignore[type-var]
        nodes.append(Node(name, new, (nodes[-1].name,) if nodes else (), Loc("net.py", line)))
    return Graph("small", tuple(nodes), "rate", {**arrays(), **(weights or {})})


def saved(path: Path, weights: dict[str, Array] | None = None, **changed: dict[str, object]) -> Path:
    """The network as a file."""
    save_graph(small_graph(weights, **changed), path)
    return path
