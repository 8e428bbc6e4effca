"""NIR files for the tests, written by the nir package, and files of ours without a process for each."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import nir
import numpy as np
import numpy.typing as npt

from compiler.ir import Graph
from frontends.from_nir import from_nir_node
from frontends.nir_export.network import nir_graph
from frontends.nir_file.hdf5_child import answer
from frontends.nir_file.nodes import NirNode
from frontends.nir_file.read import node_of_answer
from frontends.nir_file.write import nir_bytes

BYTES = 1 << 26
Floats = npt.NDArray[np.floating[Any]]


def write_graph(path: Path, nodes: dict[str, Any], edges: list[tuple[str, str]], **metadata: Any) -> Path:
    """A file with these nodes of the nir package, its own checks left out."""
    graph = nir.NIRGraph(nodes=nodes, edges=edges, metadata=metadata, type_check=False)
    nir.write(path, graph, compression=None)  # its default cannot write single numbers
    return path


def chain(path: Path, shape: tuple[int, ...], *nodes: Any, output: tuple[int, ...] | None = None) -> Path:
    """A file whose nodes n0, n1, ... stand one after another."""
    named = {f"n{i}": node for i, node in enumerate(nodes)}
    names = ["input", *named, "output"]
    ends = {"input": nir.Input(np.array(shape)), "output": nir.Output(np.array(output) if output else None)}
    if output is None:
        del ends["output"]
        names.pop()
    return write_graph(path, {**ends, **named}, list(pairwise(names)))


def lif(shape: tuple[int, ...] = (), **values: float | Floats) -> Any:
    """nir.LIF with tau 2 ms, r 1 and threshold 1 where nothing else is given."""
    given = {"tau": 2e-3, "r": 1.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0, **values}
    return nir.LIF(**{name: np.broadcast_to(np.asarray(value, np.float64), shape) for name, value in given.items()})


def reread(root: NirNode, file: str = "net.nir") -> NirNode:
    """The node after a file of it was written and read."""
    return node_of_answer(b"".join(answer(nir_bytes(root), BYTES)), file)


def read_here(path: Path) -> NirNode:
    """The node of a file, read in this process."""
    return node_of_answer(b"".join(answer(path.read_bytes(), BYTES)), str(path))


def round_trip(graph: Graph, dt: float = 1e-4) -> Graph:
    """The graph after it was written as NIR and read again."""
    return from_nir_node(reread(nir_graph(graph, dt).root), "net.nir").graph
