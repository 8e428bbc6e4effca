"""ONNX export: a graph as a standard model that other runtimes execute spike by spike."""

from __future__ import annotations

from pathlib import Path

from compiler.ir import CompileError, Graph, Loc
from frontends.onnx_export.model import onnx_model
from hwmodel.whole_files import write_whole

MAX_BYTES = 2**31 - 2**20  # of a protobuf message, less the nodes and the text


def to_onnx(graph: Graph, path: Path, *, draws_as_input: bool = False) -> None:
    """Write the graph as ONNX, IR version 8, opset 17; the file appears whole or not at all.

    Neurons are functions of the domain `spikec` whose bodies are `Scan` over standard operators; all other nodes are
    standard operators. Spikes are float32 0 and 1. The graph's text stands in the model's metadata, so that
    `load_onnx` gives back an equal graph.

    draws_as_input: the uniform draws of a Bernoulli encoding with a seed become a further input (T, N, ...).
    Shapes: as the graph's input and output, N symbolic.
    Raises: CompileError naming a node that ONNX cannot express, or if the file cannot be written.
    """
    loc = Loc(str(path))
    require_onnx(loc)
    size = sum(array.nbytes for array in graph.parameters.values())
    if size > MAX_BYTES:
        raise CompileError(
            f"the parameters have {size} bytes, an ONNX file has {MAX_BYTES} at most", loc, hint="save it as .spk"
        )
    content = onnx_model(graph, draws_as_input=draws_as_input).SerializeToString(deterministic=True)
    write_whole(path, content, example="net.onnx")


def require_onnx(loc: Loc) -> None:
    """Raises: CompileError if the package onnx is not installed."""
    import importlib.util

    if importlib.util.find_spec("onnx") is None:
        raise CompileError("ONNX files need the package onnx", loc, hint="pip install 'spikec[onnx]'")
