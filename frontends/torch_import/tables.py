"""Tables that a loop writes its steps into, `table[t] = y`, as the stack of what was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, fx

from frontends.torch_import.call import Call

_TABLES = frozenset(f"aten.{op}" for op in ("zeros.default", "zeros_like.default", "new_zeros.default"))
_EMPTY = frozenset(f"aten.{op}" for op in ("empty.memory_format", "empty_like.default", "new_empty.default"))


@dataclass(frozen=True, slots=True)
class _Write:
    """One row: the axis and index that are written to, the value, and the calls that do it, the copy last."""

    dim: int
    index: int
    value: fx.Node
    calls: tuple[Call, ...]


def stack_tables(calls: tuple[Call, ...]) -> tuple[Call, ...]:
    """The calls, where each table whose every row is written once, and read only then, is a stack of the rows."""
    for table in calls:
        if table.op in _TABLES | _EMPTY:
            calls = _stacked(table, calls)
    return calls


def _stacked(table: Call, calls: tuple[Call, ...]) -> tuple[Call, ...]:
    by_node = {call.node: call for call in calls}
    position = {call.node: place for place, call in enumerate(calls)}
    writes, written = _writes(table, by_node)
    rows = sorted(writes, key=lambda write: write.index)
    dims = {write.dim for write in rows}
    if len(dims) != 1 or [write.index for write in rows] != list(range(table.shape[rows[0].dim])):
        return calls
    last = max(position[write.calls[-1].node] for write in rows)
    readers = (user for user in table.node.users if user not in written)
    if any(position.get(reader, len(calls)) < last for reader in readers):
        return calls
    stack = replace(
        table,
        op="aten.stack.default",
        arguments={"tensors": [write.value for write in rows], "dim": rows[0].dim},
    )
    kept = [call for call in calls if call.node not in written and call is not table]
    later = next((place for place, call in enumerate(kept) if position[call.node] > last), len(kept))
    return (*kept[:later], stack, *kept[later:])


def _writes(table: Call, by_node: Mapping[fx.Node, Call]) -> tuple[list[_Write], set[fx.Node]]:
    """The rows that are written, and the nodes of the calls that do it."""
    writes: list[_Write] = []
    for user in table.node.users:
        write = _write(user, by_node)
        if write is not None:
            writes.append(write)
    return writes, {call.node for write in writes for call in write.calls}


def _write(view: fx.Node, by_node: Mapping[fx.Node, Call]) -> _Write | None:
    """A row that is chosen by one index, and by slices that are everything, and copied to; else None."""
    chosen: tuple[int, int] | None = None
    calls: list[Call] = []
    node = view
    while node in by_node:
        call = by_node[node]
        calls.append(call)
        if call.op == "aten.copy_.default":
            value = call.arguments["src"]
            if chosen is None or node.users or not isinstance(value, fx.Node) or not _fits(value, call):
                return None
            return _Write(*chosen, value, tuple(calls))
        if call.op == "aten.select.int" and chosen is None:
            whole = _shape(call.node.all_input_nodes[0])
            dim = call.integer("dim") % len(whole)
            chosen = dim, call.integer("index") % whole[dim]
        elif call.op != "aten.slice.Tensor" or call.shape != _shape(call.node.all_input_nodes[0]):
            return None
        if len(node.users) != 1:
            return None
        (node,) = node.users
    return None


def _fits(value: fx.Node, copy: Call) -> bool:
    """Whether a copy neither broadcasts nor converts."""
    source, target = value.meta.get("val"), copy.node.meta.get("val")
    if not isinstance(source, Tensor) or not isinstance(target, Tensor):
        return False
    return source.shape == target.shape and source.dtype == target.dtype


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(getattr(node.meta.get("val"), "shape", ()))
