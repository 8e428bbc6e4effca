"""Files that `to_nir` wrote: the graph they were written from, as long as nobody has changed them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compiler.ir import CompileError, Graph
from compiler.ir.lexer import tokens
from compiler.ir.ops import Array
from compiler.ir.parser import Parser
from compiler.ir.text import parse_graph
from frontends.findings import Finding, Ground
from frontends.nir_export.network import nir_graph
from frontends.nir_export.places import DIGEST, DT, TEXT, WRITER, array_places, nir_names
from frontends.nir_file.nodes import NirNode


@dataclass(frozen=True, slots=True)
class Restored:
    """The graph of the metadata; None where it no longer is what the nodes say."""

    graph: Graph | None
    findings: tuple[Finding, ...]


def restore(root: NirNode, file: str) -> Restored | None:
    """The graph that a file was written from; None for a file that has none in its metadata."""
    text, dt = root.stated(TEXT), root.metadata.get(DT)
    if root.stated(WRITER) != "spikec" or not text:
        return None
    try:
        graph = parse_graph(text, _arrays(root, text), file=f"{file}:{TEXT}")
        if graph.digest() != root.stated(DIGEST) or not isinstance(dt, np.ndarray) or dt.size != 1:
            return _changed(file, "the graph in spikec's metadata is not the one that was written")
        exported = nir_graph(graph, float(dt.reshape(-1)[0]))
    except CompileError as fault:
        return _changed(file, f"the graph in spikec's metadata cannot be read ({fault.message})")
    if not exported.root.equals(root):
        return _changed(file, "another program has changed the nodes since spikec wrote them")
    note = f"the graph {graph.name!r} as spikec wrote it, with dt {float(dt.reshape(-1)[0]):g} s"
    return Restored(graph, (Finding(place=file, ground=Ground.READ, text=note),))


def _changed(file: str, why: str) -> Restored:
    text = f"{why}; the nodes are read instead"
    return Restored(None, (Finding(place=file, ground=Ground.ASSUMED, text=text),))


def _arrays(root: NirNode, text: str) -> dict[str, Array]:
    """The arrays that the text's nodes read, from the places where the export puts them."""
    _, nodes, _ = Parser(list(tokens(text, TEXT))).graph()
    arrays: dict[str, Array] = {}
    for place in array_places(nodes, nir_names(nodes)):
        owner = root.nodes.get(place.node)
        holder = root.metadata if not place.node else owner.fields if owner is not None else {}
        value = holder.get(place.key)
        if isinstance(value, np.ndarray) and value.dtype == np.float32:
            # a Conv1d's kernel has no axis of rows
            is_line = owner is not None and owner.kind == "Conv1d" and place.key == "weight"
            array = value.astype(np.float32, copy=False)
            arrays[place.param] = array[:, :, None] if is_line and array.ndim == 3 else array
    return arrays
