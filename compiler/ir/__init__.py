"""The graph IR that every part of spikec shares."""

from compiler.ir.graph import Graph, Node
from compiler.ir.types import DType, TensorType
from compiler.ir.values import (
    Compare,
    Encoding,
    Number,
    Param,
    Reading,
    Reset,
    Surrogate,
    SurrogateKind,
)
from hwmodel.errors import CompileError, Loc

__all__ = [
    "Compare",
    "CompileError",
    "DType",
    "Encoding",
    "Graph",
    "Loc",
    "Node",
    "Number",
    "Param",
    "Reading",
    "Reset",
    "Surrogate",
    "SurrogateKind",
    "TensorType",
]
