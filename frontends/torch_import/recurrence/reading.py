"""The elementwise operators of a trace read as polynomials; a comparison with a constant is a spike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, fx

from compiler.ir import Compare
from frontends.torch_import.call import Call
from frontends.torch_import.recurrence.polynomial import (
    CONSTANT,
    Atom,
    Coefficient,
    Kind,
    Polynomial,
    coefficient,
    same,
)
from frontends.torch_import.recurrence.rules import (
    AFFINE,
    BINARY,
    COMPARING,
    ORDERINGS,
    RULES,
    UNCHANGED,
    arguments,
    base,
    execute,
    repeatable,
    sources,
)
from frontends.torch_import.trace import Trace

# Their results depend on the shape of their argument alone.
_FILLED = frozenset({"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"})
_SMALL = 64  # constants up to this size are compared by value: each step of a loop may hold its own copy
_FLIPPED = {Compare.GE: Compare.GT, Compare.GT: Compare.GE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """left - right against zero.

    path: what may be taken for the membrane potential, from the compared value inwards through constant factors and
    terms.
    """

    call: Call
    left: object
    right: object
    compare: Compare
    opposite: bool
    path: tuple[fx.Node, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spike:
    """membrane >= threshold, or >.

    varying: what stands beside the membrane potential where that is not a constant.
    """

    call: Call
    membrane: Atom
    threshold: Coefficient
    compare: Compare
    varying: Polynomial | None


@dataclass(frozen=True, slots=True)
class Equations:
    """What a trace computes, with a choice of membrane potentials.

    definitions: each membrane potential over those of earlier steps.
    values: the nodes that the atoms of other layers stand for.
    """

    polynomials: dict[fx.Node, Polynomial] = field(default_factory=dict)
    definitions: dict[Atom, Polynomial] = field(default_factory=dict)
    membranes: dict[fx.Node, Atom] = field(default_factory=dict)
    spikes: list[Spike] = field(default_factory=list)
    values: list[fx.Node] = field(default_factory=list)


class Reader:
    """A trace with its constants folded and equal calls made one."""

    def __init__(self, traced: Trace) -> None:
        self.traced = traced
        self.calls = {call.node: call for call in traced.calls}
        self.same: dict[fx.Node, fx.Node] = {}
        self.users: dict[fx.Node, set[fx.Node]] = {}
        self._constants: dict[fx.Node, Tensor] = {}
        self._numbers: dict[fx.Node, Coefficient] = {}
        seen: dict[str, fx.Node] = {}
        for call in traced.calls:
            self._fold(call)
            handed = self._handed_on(call)
            self.same[call.node] = handed or seen.setdefault(self._key(call), call.node)
            for source in () if handed or self.constant(call.node) is not None else self.variable(call):
                self.users.setdefault(self.one(source), set()).add(self.same[call.node])

    def one(self, node: fx.Node) -> fx.Node:
        """The first node that computes the same."""
        return self.same.get(node, node)

    def variable(self, call: Call) -> list[fx.Node]:
        """The nodes whose values a call computes with; of a cast, not the one that only gives the type."""
        taken = [call.arguments["self"]] if base(call) in UNCHANGED else sources(call)
        return [node for node in taken if isinstance(node, fx.Node) and self.constant(node) is None]

    def constant(self, node: fx.Node) -> Tensor | None:
        """The value of a node that does not depend on the input."""
        if node.name in self.traced.constants:
            return self.traced.constants[node.name][1].detach()
        return self._constants.get(node)

    def number(self, value: object) -> Coefficient | None:
        """The coefficient that an argument holds, if it is a constant."""
        if isinstance(value, bool | int | float):
            return np.asarray(float(value))
        if not isinstance(value, fx.Node):
            return None
        if value not in self._numbers:
            tensor = self.constant(value)
            if tensor is None:
                return None
            self._numbers[value] = coefficient(tensor.double().cpu().numpy())
        return self._numbers[value]

    def _fold(self, call: Call) -> None:
        known = base(call) in _FILLED or all(self.constant(node) is not None for node in sources(call))
        if not known or not repeatable(call):
            return

        def value(node: fx.Node) -> Tensor:
            constant = self.constant(node)
            return torch.zeros(tuple(node.meta["val"].shape)) if constant is None else constant

        result = execute(call, value)
        if isinstance(result, Tensor):
            self._constants[call.node] = result

    def _handed_on(self, call: Call) -> fx.Node | None:
        """The node whose very value a call gives; a detached value is another for the gradient."""
        if base(call) not in UNCHANGED or base(call) == "detach" or self.constant(call.node) is not None:
            return None
        source = sources(call)[0]
        before, after = source.meta["val"], call.node.meta["val"]
        return self.one(source) if (before.dtype, before.shape) == (after.dtype, after.shape) else None

    def _key(self, call: Call) -> str:
        """Equal for calls that give the same."""
        if not repeatable(call):
            return call.node.name

        def named(node: fx.Node) -> str:
            value = self.constant(node)
            if value is None or value.numel() > _SMALL:
                return self.one(node).name
            return f"{value.dtype} {tuple(value.shape)} {value.tolist()}"

        return f"{call.op} {arguments(call, named)}"

    def compares(self, node: fx.Node) -> bool:
        """Whether a node is a comparison."""
        return node in self.calls and base(self.calls[node]) in COMPARING

    def is_sum(self, node: fx.Node) -> bool:
        """Whether a node is a sum or difference of two variable values."""
        call = self.calls.get(node)
        return call is not None and base(call) in ("add", "sub") and len(self.variable(call)) == 2

    def elementwise(self, node: fx.Node) -> bool:
        """Whether a node computes each element from the same element of its arguments."""
        call = self.calls.get(node)
        if call is None or base(call) not in RULES:
            return False
        return all(tuple(v.meta["val"].shape) == call.shape for v in sources(call) if self.constant(v) is None)

    def _is_binary(self, node: fx.Node) -> bool:
        """Whether a node is a spike, or one in another type or inverted."""
        while not self.compares(self.one(node)):
            call = self.calls.get(self.one(node))
            inner = self.variable(call) if call else []
            if call is None or base(call) not in BINARY or len(inner) != 1:
                return False
            node = inner[0]
        return True

    def comparisons(self) -> list[Comparison]:
        """The spikes of the trace, in its order."""
        found = []
        for node, call in self.calls.items():
            if self.one(node) is node and self.constant(node) is None:
                comparison = self._comparison(call)
                if comparison is not None:
                    found.append(comparison)
        return found

    def _comparison(self, call: Call) -> Comparison | None:
        left: object = call.arguments.get("self")
        if base(call) == "heaviside":
            at_zero = self.number(call.arguments["values"])
            if at_zero is None or at_zero.ndim or at_zero not in (0.0, 1.0):
                return None
            right: object = 0.0
            compare, opposite = (Compare.GE if at_zero == 1.0 else Compare.GT), False
        elif base(call) in ORDERINGS:
            right = call.arguments["other"]
            compare, opposite = ORDERINGS[base(call)]
        else:
            return None
        start = left if self.number(left) is None else right
        if not isinstance(start, fx.Node) or self.number(start) is not None or self._is_binary(start):
            return None
        path = self._inwards(self.one(start))
        return Comparison(call=call, left=left, right=right, compare=compare, opposite=opposite, path=path)

    def _inwards(self, node: fx.Node) -> tuple[fx.Node, ...]:
        path = [node]
        while self.elementwise(path[-1]):
            call = self.calls[path[-1]]
            inner = self.variable(call)
            # `potential - threshold` with a threshold that changes
            beside = base(call) == "sub" and inner[0] is call.arguments["self"] and self.elementwise(inner[0])
            if base(call) not in AFFINE or (len(inner) != 1 and not beside):
                break
            path.append(self.one(inner[0]))
        return tuple(path)

    def place(self, comparison: Comparison, pick: Callable[[Sequence[int]], int]) -> int | None:
        """Which value of a comparison's path later steps go on from; None where they use none."""
        places = [at for at, node in enumerate(comparison.path) if self._is_used(comparison, at, node)]
        # The last may be what comes in, where a first step has nothing to add it to.
        computed = [at for at in places if self.elementwise(comparison.path[at])]
        return pick(computed) if computed else places[0] if places else None

    def _is_used(self, comparison: Comparison, at: int, node: fx.Node) -> bool:
        inside = comparison.path[at - 1] if at else None
        users = self.users.get(node, set()) - {inside}
        return node is self.traced.output or any(base(self.calls[user]) not in COMPARING for user in users)

    def computed(self, comparison: Comparison) -> int:
        """The innermost value of a comparison's path that an elementwise operator computes."""
        return max((at for at, node in enumerate(comparison.path) if self.elementwise(node)), default=0)

    def equations(self, comparisons: Sequence[Comparison], places: Sequence[int]) -> Equations:
        """The trace as polynomials, the membrane potential of each comparison at a place of its path."""
        result = Equations()
        for comparison, place in zip(comparisons, places, strict=True):
            node = comparison.path[place]
            result.membranes.setdefault(node, Atom(Kind.MEMBRANE, len(result.membranes)))
        by_node = {comparison.call.node: comparison for comparison in comparisons}
        if self.traced.input in result.membranes:
            self.polynomial(self.traced.input, result)
        for node, call in self.calls.items():
            if self.one(node) is not node or self.constant(node) is not None:
                continue
            spike = by_node.get(node)
            read = self._spike(spike, result) if spike else self._read(call, result)
            self._set(node, _value(node, result) if read is None else read, result)
        return result

    def polynomial(self, value: object, equations: Equations) -> Polynomial:
        """What an argument holds."""
        number = self.number(value)
        if number is not None:
            return Polynomial.constant(number)
        assert isinstance(value, fx.Node), value
        node = self.one(value)
        if node not in equations.polynomials:
            self._set(node, _value(node, equations), equations)
        return equations.polynomials[node]

    def _set(self, node: fx.Node, polynomial: Polynomial, equations: Equations) -> None:
        if node in equations.membranes:
            equations.definitions[equations.membranes[node]] = polynomial
            polynomial = Polynomial.of(equations.membranes[node])
        equations.polynomials[node] = polynomial

    def _read(self, call: Call, equations: Equations) -> Polynomial | None:
        if not self.elementwise(call.node):
            return None

        def operand(what: object) -> Polynomial:
            return self.polynomial(call.arguments[what] if isinstance(what, str) else what, equations)

        return None if _is_other_arithmetic(call) else RULES[base(call)](operand, call)

    def _spike(self, comparison: Comparison, equations: Equations) -> Polynomial | None:
        difference = self.polynomial(comparison.left, equations) - self.polynomial(comparison.right, equations)
        found = [equations.membranes[node] for node in comparison.path if node in equations.membranes]
        if not found or not difference[found[:1]].all():
            return None
        membrane = found[0]
        factor = difference[{membrane}]
        rest = difference.only(difference.terms.keys() - {frozenset({membrane})})
        compare, opposite = comparison.compare, comparison.opposite
        if bool((factor < 0).all()):
            compare, opposite = _FLIPPED[compare], not opposite
        elif not bool((factor > 0).all()):
            return None
        bound = rest.scaled(-1.0 / factor)
        spike = Spike(
            call=comparison.call,
            membrane=membrane,
            threshold=bound[CONSTANT],
            compare=compare,
            varying=None if bound.number is not None else bound,
        )
        result = Polynomial.of(_numbered(spike, equations))
        return Polynomial.constant(1.0) - result if opposite else result


def _value(node: fx.Node, equations: Equations) -> Polynomial:
    equations.values.append(node)
    return Polynomial.of(Atom(Kind.VALUE, len(equations.values) - 1))


def _is_other_arithmetic(call: Call) -> bool:
    """Whether an operator does not compute in f32, nor in integers that hold negative numbers."""
    if base(call) in UNCHANGED:
        return False
    dtype = call.node.meta["val"].dtype
    return dtype is torch.uint8 or (dtype.is_floating_point and dtype is not torch.float32)


def _numbered(spike: Spike, equations: Equations) -> Atom:
    """The atom of a spike; one that is computed twice is one."""
    for index, known in enumerate(equations.spikes):
        alike = known.membrane == spike.membrane and known.compare is spike.compare
        if alike and known.varying is spike.varying is None and same(known.threshold, spike.threshold):
            return Atom(Kind.SPIKE, index)
    equations.spikes.append(spike)
    return Atom(Kind.SPIKE, len(equations.spikes) - 1)
