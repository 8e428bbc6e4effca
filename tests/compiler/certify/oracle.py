"""What a network really does on every input of a set: the truth that bounds are checked against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compiler.certify.input_sets import InputSet
from compiler.certify.model import Bounds, Interval
from compiler.evaluate import Execution, evaluate, execute
from compiler.ir import Graph, Number, Param, Reset
from compiler.ir.ops import Lif

LIMIT = 1 << 12  # inputs that are listed at most
DRAWN = 200  # of a set that has no list


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """All nodes' values, and the neurons' membranes before and after the reset, of every input of a set.

    Shapes: values and membranes (T, M, ...), or (M, ...) without time; scores (M, K).
    """

    values: Mapping[str, Tensor]
    membranes: Mapping[str, Tensor]
    afters: Mapping[str, Tensor]
    scores: Tensor

    def margins(self, label: int) -> Tensor:
        """The least score[label] - score[j] over all inputs. Shapes: (K,)."""
        scores = self.scores.double()
        return (scores[:, label, None] - scores).amin(0)

    def is_robust(self, label: int) -> bool:
        """Whether the label alone is highest for every input."""
        others = self.scores.clone()
        others[:, label] = -torch.inf
        return bool((self.scores[:, label] > others.amax(1)).all())


@dataclass(slots=True)
class Execution64(Execution):
    """An execution in f64 with the network's own numbers, which are f32."""

    def array(self, param: Param) -> Tensor:
        return torch.from_numpy(np.array(self.graph.parameters[param.name], np.float64))

    def number(self, value: Number, value_ndim: int) -> Tensor:
        if isinstance(value, Param):
            return self.array(value).reshape(-1, *(1,) * (value_ndim - 2))
        return torch.tensor(value, dtype=torch.float32).double()


def batch_of(graph: Graph, inputs: InputSet, drawn: int = 0) -> Tensor:
    """Every input of a set, or, of a set of reals, many, its corners among them; or so many drawn ones.

    Shapes: as the graph's input, N = M.
    """
    rng = np.random.default_rng(0)
    if drawn:
        listed = np.concatenate([inputs.clean[None], inputs.sample(rng, drawn)])
    elif inputs.count is not None:
        assert inputs.count <= LIMIT
        listed = np.stack(list(inputs.members()))
    else:
        corners = np.where(rng.random((DRAWN, *inputs.shape)) < 0.5, inputs.lower, inputs.upper)
        listed = np.concatenate([inputs.clean[None], inputs.sample(rng, DRAWN), corners.astype(np.float32)])
    axis = graph.types[graph.input.name].axes.index("N")
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(listed, 0, axis)))


def truth(graph: Graph, inputs: InputSet, drawn: int = 0) -> Truth:
    """What `evaluate` computes, in f32, of all inputs, or of so many drawn ones."""
    names = [node.name for node in graph.nodes]
    made = evaluate(graph, batch_of(graph, inputs, drawn), traces=names)
    return _truth(graph, made.traces, made.membranes, Execution(graph))


def truth64(graph: Graph, inputs: InputSet) -> Truth:
    """What the same rules compute in f64: all but real numbers."""
    run = Execution64(graph, traced=[node.name for node in graph.nodes])
    values: dict[str, Tensor] = {}
    with torch.no_grad(), _default_f64():
        for node in graph.nodes:
            taken = [values[name] for name in node.inputs] or [batch_of(graph, inputs).double()]
            values[node.name] = execute(node.op, taken, node, run).double()
    return _truth(graph, values, run.membranes, run)


def violations(graph: Graph, bounds: Bounds, found: Truth, sample: int = 0) -> tuple[int, list[str]]:
    """How many bounds were compared with the values that they bound, and which do not hold.

    sample: which of the bounds' samples has the set that the truth is of.
    """
    checked, broken = 0, []
    for what, interval, values in _pairs(bounds, found):
        axis = values.ndim - graph.types[what.split(" ")[0]].axes[::-1].index("N") - 1
        lower, upper = interval.lower.select(axis, sample), interval.upper.select(axis, sample)
        exact = values.double()
        for side, is_held in (("lower", exact.amin(axis) >= lower), ("upper", exact.amax(axis) <= upper)):
            checked += is_held.numel()
            if not bool(is_held.all()):
                broken.append(f"{what}: {side} at {(~is_held).nonzero()[0].tolist()}")
        if interval.grid is not None:
            scaled = exact * 2.0**interval.grid
            if not bool((scaled == scaled.round()).all()):
                broken.append(f"{what}: not on its grid of 2^-{interval.grid}")
    return checked, broken


def _pairs(bounds: Bounds, found: Truth) -> Iterator[tuple[str, Interval, Tensor]]:
    for name, interval in bounds.nodes.items():
        yield name, interval, found.values[name]
    for name, population in bounds.populations.items():
        yield f"{name} membrane", population.membrane, found.membranes[name]
        yield f"{name} after", population.after, found.afters[name]


def _truth(graph: Graph, values: Mapping[str, Tensor], membranes: Mapping[str, Tensor], run: Execution) -> Truth:
    afters = {}
    for node in graph.nodes:
        if isinstance(node.op, Lif):
            m, s = membranes[node.name], values[node.name].to(membranes[node.name].dtype)
            threshold, value = (run.number(n, m.ndim - 1) for n in (node.op.threshold, node.op.reset_value))
            match node.op.reset:
                case Reset.HARD:
                    afters[node.name] = torch.where(s > 0, value, m)
                case Reset.SOFT if not node.op.reset_delay:
                    afters[node.name] = m - threshold * s
                case _:
                    afters[node.name] = m
    return Truth(values=values, membranes=membranes, afters=afters, scores=values[graph.output])


@contextmanager
def _default_f64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
