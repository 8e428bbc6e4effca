"""A NIR graph without its subgraphs, its nodes in an order in which they can be computed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import networkx as nx

from compiler.ir import CompileError, Loc
from frontends.nir_file.nodes import GRAPH, NirNode

IDENTITY = "Identity"  # what the ends of a subgraph become
_INPUT, _OUTPUT = "Input", "Output"


@dataclass(frozen=True, slots=True)
class FlatNode:
    """A node with its path (`sub/name` inside a subgraph), and the nodes whose outputs it takes the sum of."""

    path: str
    node: NirNode
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatGraph:
    """Nodes in order of execution, from the one Input to the one that the output is read from.

    added: sentences about the ends that the file leaves out.
    """

    nodes: tuple[FlatNode, ...]
    added: tuple[str, ...] = ()


@dataclass(slots=True)
class _Inlined:
    nodes: dict[str, NirNode] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)
    entries: dict[str, str] = field(default_factory=dict)  # of a subgraph: the path of its Input
    exits: dict[str, str] = field(default_factory=dict)


def flatten(root: NirNode, file: str) -> FlatGraph:
    """The graph with its subgraphs put in place.

    Raises: CompileError for a recurrent connection, an edge to nowhere, a node that nothing feeds or reads, and
    anything but one input and one output.
    """
    graph = root if root.kind == GRAPH else NirNode(kind=GRAPH, nodes={root.kind.lower(): root})
    inlined = _Inlined()
    _inline(graph, "", inlined, file)
    added = _complete(inlined, file)
    order = _order(inlined, file)
    sources: dict[str, list[str]] = {name: [] for name in inlined.nodes}
    for source, target in inlined.edges:
        sources[target].append(source)
    _check_ends(inlined, sources, file)
    nodes = tuple(FlatNode(name, inlined.nodes[name], tuple(sources[name])) for name in order)
    return FlatGraph(nodes=nodes, added=added)


def _inline(graph: NirNode, prefix: str, into: _Inlined, file: str) -> None:
    """Add a graph's nodes and edges; the Input and Output of a subgraph pass on what they get."""
    for name, node in graph.nodes.items():
        path = f"{prefix}{name}"
        if node.kind == GRAPH:
            _inline(node, f"{path}/", into, file)
            into.entries[path] = _end(node, path, _INPUT, file)
            into.exits[path] = _end(node, path, _OUTPUT, file)
        else:
            is_end = prefix and node.kind in (_INPUT, _OUTPUT)
            into.nodes[path] = replace(node, kind=IDENTITY, fields={}) if is_end else node
    for source, target in graph.edges:
        ends = into.exits.get(prefix + source, prefix + source), into.entries.get(prefix + target, prefix + target)
        for end in ends:
            if end not in into.nodes:
                raise CompileError(f"an edge goes from {source} to {target}, but there is no node {end}", Loc(file))
        if ends in into.edges:
            raise CompileError(f"the edge from {source} to {target} stands twice", Loc(file))
        into.edges.append(ends)


def _end(graph: NirNode, path: str, kind: str, file: str) -> str:
    names = [name for name, node in graph.nodes.items() if node.kind == kind]
    if len(names) != 1:
        raise CompileError(f"the subgraph has {len(names)} {kind} nodes, must have 1", Loc(f"{file}:{path}"))
    return f"{path}/{names[0]}"


def _complete(inlined: _Inlined, file: str) -> tuple[str, ...]:
    """Add the Input and the Output where the file has none and it is clear where they go."""
    added = []
    kinds = [node.kind for node in inlined.nodes.values()]
    for kind, at in ((_INPUT, 1), (_OUTPUT, 0)):
        if kinds.count(kind) > 1:
            names = ", ".join(name for name, node in inlined.nodes.items() if node.kind == kind)
            hint = "the graph takes one input and gives one output"
            raise CompileError(f"has {kinds.count(kind)} {kind} nodes: {names}", Loc(file), hint=hint)
        if kind in kinds:
            continue
        taken = {edge[at] for edge in inlined.edges}
        ends = [
            name for name, node in inlined.nodes.items() if name not in taken and node.kind not in (_INPUT, _OUTPUT)
        ]
        if len(ends) != 1:
            raise CompileError(f"has no {kind} node, and {len(ends)} nodes that could stand beside one", Loc(file))
        name = f"{kind.lower()}_{ends[0]}"
        inlined.nodes[name] = NirNode(kind=kind)
        inlined.edges.append((name, ends[0]) if kind == _INPUT else (ends[0], name))
        added.append(f"the file has no {kind} node; {ends[0]} is taken as the {'first' if at else 'last'} one")
    return tuple(added)


def _order(inlined: _Inlined, file: str) -> list[str]:
    graph = nx.DiGraph()
    graph.add_nodes_from(inlined.nodes)
    graph.add_edges_from(inlined.edges)
    position: dict[str, int] = {}
    for edge in inlined.edges:
        for name in edge:
            position.setdefault(name, len(position))
    try:
        return list(nx.lexicographical_topological_sort(graph, key=lambda name: (position.get(name, -1), name)))
    except nx.NetworkXUnfeasible:
        cycle = [source for source, _ in nx.find_cycle(graph)]
        raise CompileError(
            f"{' -> '.join([*cycle, cycle[0]])} is a recurrent connection",
            Loc(f"{file}:{cycle[0]}"),
            hint="only networks whose edges lead forward are imported",
        ) from None


def _check_ends(inlined: _Inlined, sources: dict[str, list[str]], file: str) -> None:
    read = {source for source, _ in inlined.edges}
    for name, node in inlined.nodes.items():
        loc = Loc(f"{file}:{name}")
        if node.kind != _INPUT and not sources[name]:
            raise CompileError(f"nothing feeds this {node.kind}", loc)
        if node.kind == _INPUT and sources[name]:
            raise CompileError(f"{sources[name][0]} feeds the Input", loc)
        if node.kind != _OUTPUT and name not in read:
            raise CompileError(f"nothing reads the output of this {node.kind}", loc)
        if node.kind == _OUTPUT and name in read:
            raise CompileError("another node reads the Output", loc)
