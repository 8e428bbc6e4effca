"""Leaky integrators written out in operators: m[t] = a * m[t-1] + b * x[t] + c with nothing compared."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, fx

from compiler.ir import CompileError, Number
from compiler.ir.ops import Li
from frontends.torch_import.adapters import Expects, Neuron
from frontends.torch_import.call import Call
from frontends.torch_import.recurrence.drive import Drives, driven, field
from frontends.torch_import.recurrence.polynomial import CONSTANT, Atom, Coefficient, Kind, Polynomial, is_zero, same
from frontends.torch_import.recurrence.proof import difference
from frontends.torch_import.recurrence.reading import Equations, Reader
from frontends.torch_import.recurrence.rewriting import Population, inserted, rewritten
from frontends.torch_import.recurrence.rules import arguments, mapped, sources
from frontends.torch_import.trace import STEP_CALLS, Trace

_CLOSE = 1e-5  # relative: sums in another order differ by some roundings of f32
_ROUNDED = "potentials are the module's up to rounding: its sums are in another order"
_READ = "written out in operators: a sum with decay, and nothing is compared with it"
_ONE = np.ones(())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Integrator:
    """The numbers of a Li, what it takes at each step, and its nodes from step 1 on."""

    decay: Coefficient
    leak_bias: Coefficient
    initial: Coefficient
    inputs: Drives
    first: Polynomial  # step 0
    nodes: tuple[fx.Node, ...]


def fold_integrators(traced: Trace, timesteps: int) -> Trace:
    """The trace with each leaky integrator that has a step for each time step as a Li.

    A plain sum of all steps stays: it is a readout.
    Raises: CompileError for one whose potentials differ from a Li's by more than rounding.
    """
    while timesteps > 1:
        reader = Reader(traced)
        equations = reader.equations((), ())
        found = _integrator(reader, equations, timesteps)
        if found is None:
            break
        traced = _replaced(reader, equations, found)
    return traced


def _integrator(reader: Reader, equations: Equations, timesteps: int) -> _Integrator | None:
    """The first integrator whose steps take all that its last one depends on."""
    nodes: dict[frozenset[Atom], list[fx.Node]] = {}
    for node in reader.calls:
        polynomial = equations.polynomials.get(node)
        if polynomial is not None and reader.elementwise(node) and all(len(m) <= 1 for m in polynomial.terms):
            nodes.setdefault(polynomial.atoms(Kind.VALUE), []).append(node)
    alike = _alike(reader)
    kinds = {Atom(Kind.VALUE, index): alike.get(node) for index, node in enumerate(equations.values)}
    for atoms in sorted(nodes, key=len):
        width, rest = divmod(len(atoms), timesteps)
        if rest or not width:
            continue
        ordered = sorted(atoms)
        copies = {tuple(kinds[atom] for atom in ordered[at : at + width]) for at in range(0, len(ordered), width)}
        if len(copies) != 1:
            continue
        steps = [frozenset(ordered[: (at + 1) * width]) for at in range(timesteps)]
        levels = [nodes.get(step, []) for step in steps[1:]]
        candidates = [tuple(level[place] for level in levels) for place in range(min(map(len, levels)))]
        fits = [found for found in (_fit(reader, equations, chosen, steps) for chosen in candidates) if found]
        if fits:
            return max(fits, key=lambda found: len(reader.users.get(found.nodes[0], ())))
    return None


def _alike(reader: Reader) -> dict[fx.Node, str]:
    """The same text for the copies of one operator that an unrolled loop has: only the step differs."""
    texts: dict[fx.Node, str] = {}
    known: dict[str, str] = {}

    def text(node: fx.Node) -> str:
        return texts.get(node, node.name)

    for node, call in reader.calls.items():
        skipped = ("x", "state") if call.op in STEP_CALLS else ("index", "1", "start", "end")
        taken = {name: mapped(value, text) for name, value in call.arguments.items() if name not in skipped}
        whole = f"{call.op} {taken}"
        texts[node] = known.setdefault(whole, f"#{len(known)}")
    return texts


def _fit(
    reader: Reader, equations: Equations, nodes: tuple[fx.Node, ...], steps: Sequence[frozenset[Atom]]
) -> _Integrator | None:
    """The integrator whose potentials from step 1 on are at some nodes, if there is one."""
    potentials = [equations.polynomials[node] for node in nodes]
    olds = [potential.only(map(_alone, step)) for potential, step in zip(potentials, steps, strict=False)]
    news = [
        potential.only(map(_alone, now - before))
        for potential, before, now in zip(potentials, steps, steps[1:], strict=False)
    ]
    decay = _decay(olds, news, [old + new for old, new in zip(olds, news, strict=True)])
    if decay is None or not bool(((decay > 0.0) & (decay <= 1.0)).all()):
        return None
    if same(decay, _ONE) and all(_is_summand(reader, equations, node) for node in nodes[:-1]):
        return None
    start = olds[0].scaled(1.0 / decay)
    inputs = driven(equations, {}, (start, *news))
    if inputs is None:
        return None
    constants = [potential[CONSTANT] for potential in potentials]
    if len(constants) == 1:
        constants = [_constant(reader, equations, start, inputs), *constants]
    leak = _leak(constants, decay)
    if leak is None:
        return None
    before = (potentials[0][CONSTANT] - leak) / decay  # the constant of step 0
    return _Integrator(
        decay=decay,
        leak_bias=leak,
        initial=(before - leak) / decay,
        inputs=inputs,
        first=start + Polynomial.constant(before),
        nodes=nodes,
    )


def _alone(atom: Atom) -> frozenset[Atom]:
    return frozenset({atom})


def _decay(olds: Sequence[Polynomial], news: Sequence[Polynomial], wholes: Sequence[Polynomial]) -> Coefficient | None:
    if not olds[0].terms or not news[0].terms:
        return None
    if len(olds) == 1:
        (old, new) = (polynomial.terms[min(polynomial.terms, key=sorted)] for polynomial in (olds[0], news[0]))
        return old / new if new.all() else None
    decays = [old.ratio(whole) for old, whole in zip(olds[1:], wholes, strict=False)]
    first = decays[0]
    if first is None or not all(decay is not None and same(decay, first) for decay in decays):
        return None
    return first


def _leak(constants: Sequence[Coefficient], decay: Coefficient) -> Coefficient | None:
    """The number c with constant[t] = decay * constant[t-1] + c."""
    leaks = [now - decay * before for before, now in itertools.pairwise(constants)]
    return leaks[0] if all(same(leak, leaks[0]) for leak in leaks) else None


def _constant(reader: Reader, equations: Equations, start: Polynomial, inputs: Drives) -> Coefficient:
    """The constant of step 0 where two steps are too few to tell: of the value that takes the same input."""
    taken = {node for node, _ in inputs[1][0].parts}
    for node, polynomial in equations.polynomials.items():
        apart = polynomial.only(polynomial.terms.keys() - {CONSTANT}) - start
        if reader.elementwise(node) and node not in taken and all(map(is_zero, apart.terms.values())):
            return polynomial[CONSTANT]
    return np.zeros(())


def _is_summand(reader: Reader, equations: Equations, node: fx.Node) -> bool:
    """Whether a value is used only in sums with what later steps take."""
    atoms = equations.polynomials[node].atoms(Kind.VALUE)
    users = reader.users.get(node, set())
    later = all(reader.elementwise(user) and equations.polynomials[user].atoms(Kind.VALUE) != atoms for user in users)
    return later and node is not reader.traced.output


def _replaced(reader: Reader, equations: Equations, found: _Integrator) -> Trace:
    start = _start(reader, equations, found)
    if start is None:
        reader, start = _inserted(reader, found)
    scale, drives = found.inputs
    where = reader.calls[found.nodes[0]]
    index = len(reader.traced.neurons)
    arrays: dict[str, Tensor] = {}

    def number(what: str, value: Coefficient) -> Number:
        number = field(f"recurrence{index}.{what}", value, where.shape, arrays)
        if number is None:
            raise where.fail(f"the {what} of a leaky integrator differs within a channel")
        return number

    op = Li(
        decay=number("decay", found.decay),
        input_scale=number("input_scale", scale),
        leak_bias=number("leak_bias", found.leak_bias),
        initial=number("initial", found.initial),
    )
    results = (start, *found.nodes)
    apart = difference(reader, drives, results, op, arrays)
    if apart.largest > _CLOSE:
        raise CompileError(
            f"a sum with decay differs from a leaky integrator's by {apart.largest:.1e} of its size",
            where.where,
            hint="write m = decay * m + scale * x",
        )
    neuron = Neuron(
        op=op,
        expects=Expects.STEP,
        arrays=tuple(arrays.items()),
        keeps_state=True,
        read=(_READ,),
        assumed=(_ROUNDED,) if apart.unequal else (),
    )
    renamed = {node: reader.one(node) for node in reader.calls if reader.one(node) in results}
    return rewritten(reader.traced, [Population(neuron=neuron, drives=drives, results=results)], renamed)


def _start(reader: Reader, equations: Equations, found: _Integrator) -> fx.Node | None:
    """The node that holds the potential of step 0."""
    inputs = {node for node, _ in found.inputs[1][0].parts}
    for node, polynomial in equations.polynomials.items():
        if reader.elementwise(node) and node not in inputs:
            apart = polynomial - found.first
            if all(map(is_zero, apart.terms.values())):
                return node
    return None


def _inserted(reader: Reader, found: _Integrator) -> tuple[Reader, fx.Node]:
    """A node of its own for the potential of step 0 where that is the input itself, or is not computed."""
    ((value, _), *_) = found.inputs[1][0].parts
    first = reader.calls[found.nodes[0]]
    extra = inserted(first, "aten.clone.default", value)
    results = {*found.nodes}
    calls: list[Call] = []
    for call in reader.traced.calls:
        if call is first:
            calls.append(extra)
        takes = set(sources(call))
        swapped = value in takes and bool(takes & results)
        calls.append(_instead(call, value, extra.node) if swapped else call)
    return Reader(replace(reader.traced, calls=tuple(calls))), extra.node


def _instead(call: Call, old: fx.Node, new: fx.Node) -> Call:
    """The call with another node in an argument's place."""
    call.node.replace_input_with(old, new)
    return replace(call, arguments=arguments(call, lambda node: new if node is old else node))
