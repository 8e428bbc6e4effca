"""A small network to attack, of each kind of input, with samples that it tells right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from compiler.attack.settings import Case, Settings
from compiler.ir import DType, Encoding, Graph
from compiler.ir.file import save_graph
from compiler.passes import DropEncode
from spikec.attack.plan import Plan
from spikec.attack.verdicts import clean_scores
from tests.spikec.graphs import STEPS, small_graph

SAMPLES = 24
KINDS = ("direct", "bernoulli", "spikes")


def graph_of(kind: str) -> Graph:
    """Taking intensities as they are, behind a Bernoulli code, or spikes."""
    weights = {"b1": np.zeros(4, np.float32)}
    if kind == "direct":
        return small_graph(weights)
    coded = small_graph(weights, encode={"kind": Encoding.BERNOULLI, "seed": 0})
    if kind == "bernoulli":
        return coded
    free = DropEncode()(coded)
    source = free.input
    spikes = replace(source, op=replace(source.op, dtype=DType.SPIKE))  # type: ignore[type-var]
    return free.with_nodes(tuple(spikes if node is source else node for node in free.nodes))


def samples_of(kind: str) -> npt.NDArray[np.float32]:
    """Shapes: (N, 1, 8, 8) images or (N, T, 1, 8, 8) spikes."""
    rng = np.random.default_rng(1)
    if kind == "spikes":
        return (rng.random((SAMPLES, STEPS, 1, 8, 8)) < 0.4).astype(np.float32)
    return rng.random((SAMPLES, 1, 8, 8)).astype(np.float32)


def labels_of(graph: Graph, x: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """What the network says."""
    cases = [Case(sample=at, x=own, label=0) for at, own in enumerate(x)]
    plan = Plan(graph=graph, method="bim", settings=Settings())  # type: ignore[arg-type]
    labels: npt.NDArray[np.int64] = clean_scores(plan.victim(), cases, plan.settings).argmax(1).numpy()
    return labels


def written(folder: Path, kind: str) -> tuple[str, str]:
    """The network and its samples as files: their names."""
    graph, x = graph_of(kind), samples_of(kind)
    save_graph(graph, folder / f"{kind}.spk")
    np.savez(folder / f"{kind}.npz", x=x, y=labels_of(graph, x))
    return f"{kind}.spk", f"{kind}.npz"
