"""Where a NIR file keeps what belongs to the nodes of a graph: names of nodes, places of arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from compiler.ir import Node, Param
from compiler.ir.ops import Conv2d, Input, Linear

INPUT, OUTPUT = "input", "output"
WRITER, TEXT, DIGEST, DT, TIMESTEPS = "writer", "spikec_graph", "spikec_digest", "dt", "timesteps"


def nir_names(nodes: Sequence[Node]) -> dict[str, str]:
    """A name for each node that is one in HDF5 too: printable, without a slash, and no other node's."""
    names: dict[str, str] = {}
    taken = {INPUT, OUTPUT}
    for node in nodes:
        if isinstance(node.op, Input):
            names[node.name] = INPUT
            continue
        plain = "".join(c if c.isprintable() and c != "/" else "_" for c in node.name)[:100].strip(". ") or "node"
        name, count = plain, 2
        while name in taken:
            name, count = f"{plain}_{count}", count + 1
        taken.add(name)
        names[node.name] = name
    return names


@dataclass(frozen=True, slots=True)
class ArrayPlace:
    """An array: a field of a NIR node, or in the graph's metadata (node empty)."""

    param: str
    node: str
    key: str


def array_places(nodes: Sequence[Node], names: dict[str, str]) -> Iterator[ArrayPlace]:
    """Every array that the nodes read, once for each reading of it."""
    for index, node in enumerate(nodes):
        for field in fields(node.op):  # type: ignore[arg-type]  # every op is a dataclass
            value = getattr(node.op, field.name)
            if not isinstance(value, Param):
                continue
            if isinstance(node.op, Conv2d | Linear):
                yield ArrayPlace(value.name, names[node.name], field.name)
            else:
                yield ArrayPlace(value.name, "", f"array_{index}_{field.name}")
