"""A tiny network to certify, of each kind of input, with samples that it mostly tells right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from compiler.evaluate import evaluate
from compiler.ir import DType, Encoding, Graph, Loc, Node, Param, Reading
from compiler.ir.file import save_graph
from compiler.ir.ops import Encode, Flatten, Input, Lif, Linear, Op, Readout
from compiler.passes import DropEncode

STEPS, SAMPLES, CLASSES = 3, 20, 3
KINDS = ("direct", "bernoulli", "spikes")
SETS = {"direct": "linf:eps=0.06", "bernoulli": "linf:width=0.1", "spikes": "l0:k=2"}
Floats = npt.NDArray[np.float32]


def graph_of(kind: str) -> Graph:
    """Taking intensities as they are, behind a Bernoulli code, or spikes."""
    rng = np.random.default_rng(4)
    code = {"kind": Encoding.DIRECT} if kind == "direct" else {"kind": Encoding.BERNOULLI, "seed": 5}
    ops: dict[str, Op] = {
        "x": Input(shape=("N", 1, 4, 4), dtype=DType.F32, axes="NCHW"),
        "encode": Encode(timesteps=STEPS, **code),
        "flat": Flatten(),
        "fc1": Linear(weight=Param("w1")),
        "lif1": Lif(decay=0.5, threshold=0.5),
        "fc2": Linear(weight=Param("w2")),
        "lif2": Lif(decay=0.9, threshold=0.4),
        "fc3": Linear(weight=Param("w3")),
        "rate": Readout(kind=Reading.RATE),
    }
    arrays = {
        "w1": rng.normal(0, 0.4, (10, 16)).astype(np.float32),
        "w2": rng.normal(0, 0.4, (8, 10)).astype(np.float32),
        "w3": rng.normal(0, 0.4, (CLASSES, 8)).astype(np.float32),
    }
    nodes: list[Node] = []
    for line, (name, op) in enumerate(ops.items(), start=1):
        nodes.append(Node(name, op, (nodes[-1].name,) if nodes else (), Loc("tiny.py", line)))
    graph = Graph("tiny", tuple(nodes), "rate", arrays)
    if kind != "spikes":
        return graph
    free = DropEncode()(graph)
    source = free.input
    spikes = replace(source, op=replace(source.op, dtype=DType.SPIKE))  # type: ignore[type-var]
    return free.with_nodes(tuple(spikes if node is source else node for node in free.nodes))


def samples_of(kind: str) -> Floats:
    """Shapes: (N, 1, 4, 4) images or (N, T, 1, 4, 4) spikes."""
    rng = np.random.default_rng(1)
    if kind == "spikes":
        return (rng.random((SAMPLES, STEPS, 1, 4, 4)) < 0.5).astype(np.float32)
    return rng.random((SAMPLES, 1, 4, 4)).astype(np.float32)


def labels_of(graph: Graph, x: Floats) -> npt.NDArray[np.int64]:
    """What the network says, but for the last two samples."""
    batch = torch.from_numpy(x if graph.types[graph.input.name].axes[0] == "N" else np.moveaxis(x, 0, 1).copy())
    labels: npt.NDArray[np.int64] = evaluate(graph, batch).output.argmax(1).numpy()
    labels[-2:] = (labels[-2:] + 1) % CLASSES
    return labels


def written(folder: Path, kind: str) -> tuple[str, str]:
    """The network and its samples as files: their names."""
    graph, x = graph_of(kind), samples_of(kind)
    save_graph(graph, folder / f"{kind}.spk")
    np.savez(folder / f"{kind}.npz", x=x, y=labels_of(graph, x))
    return f"{kind}.spk", f"{kind}.npz"
