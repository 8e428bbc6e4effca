"""A NIR node as its file states it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from compiler.ir import CompileError, Loc

Values = npt.NDArray[np.generic]  # numbers of any kind and width; of shape () for a single one
Field = Values | str
# What a group of the file holds: groups, numbers, texts in lists of any depth, and None for a dataset without value.
Text = str | list["Text"]
Tree = Mapping[str, "Tree | Values | Text | None"]

GRAPH = "NIRGraph"


@dataclass(frozen=True, slots=True, kw_only=True)
class NirNode:
    """One node: what it is called in NIR, its numbers and texts by name; nodes and edges are those of a graph."""

    kind: str
    fields: Mapping[str, Field] = field(default_factory=dict)
    metadata: Mapping[str, Field] = field(default_factory=dict)
    nodes: Mapping[str, NirNode] = field(default_factory=dict)
    edges: tuple[tuple[str, str], ...] = ()

    def stated(self, key: str) -> str:
        """A text of the metadata; "" where there is none."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else ""

    def equals(self, other: NirNode) -> bool:
        """Whether both say the same, bit for bit."""
        return (
            self.kind == other.kind
            and self.edges == other.edges
            and _same_fields(self.fields, other.fields)
            and _same_fields(self.metadata, other.metadata)
            and self.nodes.keys() == other.nodes.keys()
            and all(node.equals(other.nodes[name]) for name, node in self.nodes.items())
        )


def node_of(tree: Tree, file: str, place: str = "") -> NirNode:
    """The node that a group of the file holds.

    Raises: CompileError naming the group that is no node.
    """
    kind = tree.get("type")
    if not isinstance(kind, str):
        raise _fault(file, place, "has no type", "a NIR node has a text named type")
    nodes: dict[str, NirNode] = {}
    edges: tuple[tuple[str, str], ...] = ()
    if kind == GRAPH:
        members = tree.get("nodes")
        if not isinstance(members, Mapping):
            raise _fault(file, place, "is a graph without nodes")
        for name, member in members.items():
            inner = f"{place}/{name}" if place else name
            if not isinstance(member, Mapping):
                raise _fault(file, inner, "is no node")
            _check_name(name, file)
            nodes[name] = node_of(member, file, inner)
        edges = _edges(tree.get("edges"), file, place)
    metadata = tree.get("metadata")
    rest = {name: value for name, value in tree.items() if name not in ("type", "nodes", "edges", "metadata")}
    return NirNode(
        kind=kind,
        fields=_flat(rest),
        metadata=_flat(metadata) if isinstance(metadata, Mapping) else {},
        nodes=nodes,
        edges=edges,
    )


def _flat(tree: Tree) -> dict[str, Field]:
    """The numbers and texts of a group; groups in it, lists of texts and datasets without value mean nothing here."""
    return {name: value for name, value in tree.items() if isinstance(value, str | np.ndarray)}


def _edges(value: object, file: str, place: str) -> tuple[tuple[str, str], ...]:
    if isinstance(value, np.ndarray) and not value.size:
        return ()
    if not isinstance(value, list):
        raise _fault(file, place, "is a graph without edges")
    edges = []
    for edge in value:
        match edge:
            case [str() as source, str() as target]:
                edges.append((source, target))
            case _:
                raise _fault(file, place, "has an edge that is no pair of names")
    return tuple(edges)


def _check_name(name: str, file: str) -> None:
    if not name.isprintable() or len(name) > 200:
        raise CompileError(f"a node is called {name[:20]!a}, which is no name", Loc(file))


def _fault(file: str, place: str, message: str, hint: str = "") -> CompileError:
    return CompileError(message, Loc(f"{file}:{place}" if place else file), hint=hint)


def _same_fields(left: Mapping[str, Field], right: Mapping[str, Field]) -> bool:
    return left.keys() == right.keys() and all(_same(value, right[name]) for name, value in left.items())


def _same(left: Field, right: Field) -> bool:
    if isinstance(left, str) or isinstance(right, str):
        return isinstance(left, str) and isinstance(right, str) and left == right
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
