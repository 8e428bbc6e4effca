"""Networks on disk: a `.spk` file is a safetensors file of the weights with the graph's text as metadata."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from compiler.ir.graph import Graph
from compiler.ir.ops import Array, parameter_names
from compiler.ir.text import parse_graph, print_graph
from hwmodel.errors import CompileError, Loc
from hwmodel.whole_files import write_whole

_KEY = "spikec.graph"  # the only key: safetensors writes several in random order
_FORMAT = "spikec graph, format "
_VERSION = "1"


def save_graph(graph: Graph, path: Path) -> None:
    """Write the graph and the arrays that its nodes read; the file appears whole or not at all.

    Equal graphs give equal bytes.
    Raises: CompileError if the file cannot be written.
    """
    read = {name for node in graph.nodes for name in parameter_names(node.op)}
    arrays = {name: np.asarray(graph.parameters[name]) for name in sorted(read)}
    content = save(arrays, metadata={_KEY: f"{_FORMAT}{_VERSION}\n{print_graph(graph)}"})
    write_whole(path, content, example="net.spk")


def load_graph(path: Path) -> Graph:
    """Read a graph with its arrays.

    Raises: CompileError if the file cannot be read, is no `.spk` file of this version, or is damaged.
    """
    loc = Loc(str(path))
    try:
        content, arrays = _read(path, loc)
    except OSError as fault:
        reason = fault.strerror or str(fault).removesuffix(f": {path}")
        raise CompileError(f"cannot be read: {reason}", loc) from fault
    except SafetensorError as fault:
        hint = "it is cut off, damaged or of another kind; save the network again"
        raise CompileError(f"is not a .spk file: {fault}", loc, hint=hint) from fault
    header, _, text = content.partition("\n")
    version = header.removeprefix(_FORMAT)
    if version != _VERSION:
        raise CompileError(
            f"has format {version[:20]!r}, this spikec reads format {_VERSION}",
            loc,
            hint="save the network again with this version",
        )
    try:
        graph = parse_graph(text, arrays, file=str(path))
    except CompileError as fault:
        if fault.loc.file == loc.file:
            raise
        hint = fault.hint or "the file is damaged, or another program has changed it"
        raise CompileError(f"{fault.loc}: {fault.message}", loc, hint=hint) from fault
    surplus = arrays.keys() - {name for node in graph.nodes for name in parameter_names(node.op)}
    if surplus:
        names = ", ".join(f"@{name}" for name in sorted(surplus))
        raise CompileError(
            f"holds arrays that no node reads: {names}",
            loc,
            hint="the file is damaged, or another program has changed it",
        )
    return graph


def _read(path: Path, loc: Loc) -> tuple[str, dict[str, Array]]:
    """The graph's text and the arrays."""
    if path.is_dir():
        raise CompileError("is a folder, not a .spk file", loc, hint="name the file inside it")
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
        if _KEY not in metadata:
            hint = "files of weights alone cannot be read; save the network as .spk"
            raise CompileError(f"holds no network: its metadata lacks {_KEY}", loc, hint=hint)
        names = file.keys()
        for name in names:
            dtype = file.get_slice(name).get_dtype()
            if dtype != "F32":
                raise CompileError(f"array @{name} is {dtype}, must be F32", loc, hint="weights are stored as f32")
        return metadata[_KEY], {name: file.get_tensor(name) for name in names}
