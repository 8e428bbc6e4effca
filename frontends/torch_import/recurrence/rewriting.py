"""A trace with the steps of recognised populations as calls of `spikec.recurrence`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from frontends.torch_import.adapters import Neuron
from frontends.torch_import.call import Call
from frontends.torch_import.recurrence.proof import Drive
from frontends.torch_import.recurrence.rules import arguments, sources
from frontends.torch_import.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """A recognised neuron: what it takes at each step, and the nodes of its results."""

    neuron: Neuron
    drives: tuple[Drive, ...]
    results: tuple[fx.Node, ...]


def rewritten(traced: Trace, populations: Sequence[Population], renamed: Mapping[fx.Node, fx.Node]) -> Trace:
    """The trace after the populations have taken the place of their operators.

    renamed: nodes that hold the same as a result, and that result.
    """
    steps = {
        node: (index, at)
        for index, population in enumerate(populations, len(traced.neurons))
        for at, node in enumerate(population.results)
    }

    for node, result in renamed.items():
        node.replace_all_uses_with(result)  # what reads the traced graph itself must see the same

    def known(node: fx.Node) -> fx.Node:
        return renamed.get(node, node)

    calls: list[Call] = []
    for call in traced.calls:
        if call.node not in steps:
            calls.append(replace(call, arguments=arguments(call, known)))
            continue
        index, at = steps[call.node]
        population = populations[index - len(traced.neurons)]
        sums = _sums(call, population.drives[at], known)
        x = sums[-1].node if sums else known(population.drives[at].parts[0][0])
        before = population.results[at - 1] if at else None
        calls += [
            *sums,
            replace(call, op="spikec.recurrence", arguments={"x": x, "state": before, "index": index}),
        ]
    output = known(traced.output)
    return replace(
        traced,
        calls=live(calls, output),
        output=output,
        returned=frozenset(known(node) for node in traced.returned),
        neurons=(*traced.neurons, *(population.neuron for population in populations)),
    )


def live(calls: Iterable[Call], output: fx.Node) -> tuple[Call, ...]:
    """The calls that an output depends on, in their order."""
    needed, kept = {output}, []
    for call in reversed(list(calls)):
        if call.node in needed:
            needed.update(sources(call))
            kept.append(call)
    return tuple(reversed(kept))


def inserted(before: Call, op: str, *taken: fx.Node | float) -> Call:
    """A call that the trace does not hold, of an operator without other arguments; the shape stays."""
    family, name, overload = op.split(".")
    target = getattr(getattr(getattr(torch.ops, family), name), overload)
    graph = before.node.graph
    with graph.inserting_before(before.node):
        node = graph.call_function(target, taken)
    node.meta["val"] = before.node.meta["val"].to(torch.float32)
    schema = target._schema.arguments
    given = {argument.name: argument.default_value for argument in schema}
    given |= {argument.name: value for argument, value in zip(schema, taken, strict=False)}
    return replace(before.outside(), node=node, op=op, arguments=given)


def _sums(call: Call, drive: Drive, known: Callable[[fx.Node], fx.Node]) -> list[Call]:
    """Calls that put together what no node of the trace holds."""
    made: list[Call] = []
    total: fx.Node | None = None
    for node, factor in drive.parts:
        part = known(node)
        if factor != 1.0:
            made.append(inserted(call, "aten.mul.Tensor", part, factor))
            part = made[-1].node
        if total is not None:
            made.append(inserted(call, "aten.add.Tensor", total, part))
            part = made[-1].node
        total = part
    return made
