"""Models that spikec wrote, recognised by writing them again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from compiler.ir import CompileError, Graph, Loc
from compiler.ir.ops import Encode
from compiler.ir.text import parse_graph
from frontends.onnx_export.model import TEXT_KEY, onnx_model
from frontends.onnx_import.files import to_tensor

if TYPE_CHECKING:
    from onnx import ModelProto

_MAX_TIMESTEPS = 2**16  # more are no network's, and would be written out for a latency code


def has_text(model: ModelProto) -> bool:
    """Whether the model carries the text of a graph."""
    return any(entry.key == TEXT_KEY for entry in model.metadata_props)


def own_graph(model: ModelProto, file: str) -> Graph | None:
    """The graph from which spikec would write exactly these nodes, functions and arrays; else None."""
    texts = [entry.value for entry in model.metadata_props if entry.key == TEXT_KEY]
    if len(texts) != 1:
        return None
    try:
        arrays = {
            proto.name: to_tensor(proto, Path(file).parent, Loc(file)).numpy() for proto in model.graph.initializer
        }
        graph = parse_graph(texts[0], arrays, file=file)
        graph = graph.with_nodes(graph.nodes)
        if graph.timesteps > _MAX_TIMESTEPS:
            return None
        draws = any(isinstance(node.op, Encode) and node.op.seed is not None for node in graph.nodes)
        again = onnx_model(graph, draws_as_input=draws)
    except (CompileError, OverflowError, ValueError):  # another text, or numbers that ONNX does not hold
        return None
    return graph if _content(again) == _content(model) else None


def _content(model: ModelProto) -> tuple[bytes, ...]:
    """What the model computes, without who wrote it and when."""
    return tuple(
        part.SerializeToString(deterministic=True) for part in (model.graph, *model.functions, *model.opset_import)
    )
