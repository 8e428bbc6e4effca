"""Recognised populations of spiking neurons take the place of their operators in a trace."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, fx

from compiler.ir import CompileError, Number, Reset, Surrogate
from compiler.ir.ops import Lif
from frontends.torch_import.adapters import Expects, Neuron
from frontends.torch_import.recurrence.drive import driven, field
from frontends.torch_import.recurrence.match import Chain, Fit, fit
from frontends.torch_import.recurrence.polynomial import Atom, Coefficient, Kind, Polynomial, is_zero
from frontends.torch_import.recurrence.proof import Drive, difference
from frontends.torch_import.recurrence.reading import Equations, Reader
from frontends.torch_import.recurrence.rewriting import Population, rewritten
from frontends.torch_import.recurrence.rules import base, sources
from frontends.torch_import.trace import STEP_CALLS, Trace

_SURROGATE = "surrogate: rectangle of width 0.5; operators do not show how spikes are differentiated"
_CUT = "the gradient goes through the membrane potential, which the module detaches"
_RECURRENT = "recurrent connections, and what is not linear in m[t-1] or not in float32, are not expressed"
_ONE_STEP = "decay 0, no reset: a single step shows neither"


def fold_populations(
    reader: Reader, equations: Equations, found: Sequence[Chain], timesteps: int, surrogate: Surrogate | None
) -> Trace:
    """The trace with the populations that have a step for each time step.

    Raises: CompileError as `recurrence.fold_recurrences`.
    """
    for chain in found:
        if len(chain.steps) not in (1, timesteps):
            fit(chain)  # what is no neuron at all is said first, and then what has no use for its last spikes
            _check_membranes(reader, equations, [chain], reader.traced)
            raise CompileError(
                f"a neuron that is written out does {len(chain.steps)} steps, the network has timesteps={timesteps}",
                chain.steps[0].facts.call.where,
                hint="the loop over time does one step for each time step",
            )
    whole = [chain for chain in _grouped(found, timesteps) if len(chain.steps) == timesteps]
    _check_recurrent(reader, equations, whole)
    holders = _holders(reader, equations, whole)
    populations: list[Population] = []
    for chain in whole:
        index = len(reader.traced.neurons) + len(populations)
        populations.append(_population(reader, chain, holders, index, surrogate))
    renamed = {
        node: holders[atom]
        for node in reader.calls
        for atom in [_spike(equations.polynomials.get(reader.one(node)))]
        if atom in holders and node is not holders[atom]
    }
    result = rewritten(reader.traced, populations, renamed)
    _check_membranes(reader, equations, whole, result)
    return result


def _grouped(found: Sequence[Chain], timesteps: int) -> list[Chain]:
    """Comparisons without memory belong together where they are the same line of the user's code."""
    groups: dict[object, list[Chain]] = {}
    for chain in found:
        facts = chain.steps[0].facts
        alone = (facts.call.path, facts.call.source, facts.compare, facts.threshold.tobytes())
        key = alone if len(chain.steps) < timesteps and facts.call.source else id(chain)
        groups.setdefault(key, []).append(chain)
    return [
        Chain(tuple(step for chain in group for step in chain.steps), group[0].equations) for group in groups.values()
    ]


def _check_recurrent(reader: Reader, equations: Equations, whole: Sequence[Chain]) -> None:
    """Raises: CompileError where a population's input depends on its own spikes or membrane potential."""
    owner = {step.facts.membrane: number for number, chain in enumerate(whole) for step in chain.steps}
    inputs: dict[fx.Node, frozenset[int]] = {}  # the populations that what a node takes depends on
    reached: dict[fx.Node, frozenset[int]] = {}
    for node, call in reader.calls.items():
        inputs[node] = frozenset().union(*(reached.get(source, frozenset()) for source in sources(call)))
        membrane = equations.membranes.get(reader.one(node))
        reached[node] = inputs[node] | ({owner[membrane]} if membrane in owner else frozenset())
    for number, chain in enumerate(whole):
        for at, step in enumerate(chain.steps):
            for atom in sorted(step.definition.atoms(Kind.VALUE)):
                node = equations.values[atom.index]
                if number in inputs.get(node, frozenset()):
                    call = reader.calls[node]
                    raise CompileError(
                        f"the input of step {at} depends on the neurons' own step {at - 1}, through "
                        f"{f'{call.path}: ' if call.path else ''}{call.op}",
                        step.facts.call.where,
                        hint=_RECURRENT,
                    )


def _holders(reader: Reader, equations: Equations, whole: Sequence[Chain]) -> dict[Atom, fx.Node]:
    """For each spike the first node that holds it."""
    wanted = {step.spike for chain in whole for step in chain.steps}
    holders: dict[Atom, fx.Node] = {}
    for node in reader.calls:
        atom = _spike(equations.polynomials.get(reader.one(node)))
        if atom in wanted:
            holders.setdefault(atom, node)
    for chain in whole:
        for at, step in enumerate(chain.steps):
            if step.spike not in holders:
                raise chain.refuse(at, "the network uses where the neuron does not fire, and not its spikes")
    return holders


def _spike(polynomial: Polynomial | None) -> Atom | None:
    """The spike that a polynomial is."""
    if polynomial is None or len(polynomial.terms) != 1:
        return None
    ((monomial, value),) = polynomial.terms.items()
    (atom,) = monomial if len(monomial) == 1 else (None,)
    return atom if atom and atom.kind is Kind.SPIKE and value.ndim == 0 and value == 1.0 else None


def _population(
    reader: Reader, chain: Chain, holders: dict[Atom, fx.Node], index: int, surrogate: Surrogate | None
) -> Population:
    fitted = fit(chain)
    shape = chain.steps[0].facts.call.shape
    inputs = driven(chain.equations, holders, fitted.drives)
    if inputs is None:
        raise chain.refuse(chain.last, "its inputs have other factors at other steps, or at other channels")
    scale, drives = inputs
    arrays: dict[str, Tensor] = {}

    def number(what: str, value: Coefficient) -> Number:
        found = field(f"recurrence{index}.{what}", value, shape, arrays)
        if found is None:
            raise chain.refuse(chain.last, f"{what} differs within a channel")
        return found

    op = Lif(
        decay=number("decay", fitted.decay),
        threshold=number("threshold", fitted.threshold),
        input_scale=number("input_scale", scale),
        leak_bias=number("leak_bias", fitted.leak_bias),
        reset=fitted.reset,
        reset_value=number("reset_value", fitted.reset_value),
        reset_delay=fitted.reset_delay,
        compare=fitted.compare,
        detach_reset=fitted.reset is not Reset.NONE and _detached(reader, chain, from_spike=True),
        initial=number("initial", fitted.initial),
        surrogate=surrogate or Surrogate(),
    )
    results = tuple(holders[step.spike] for step in chain.steps)
    _prove(reader, chain, drives, results, op, arrays)
    neuron = Neuron(
        op=op,
        expects=Expects.STEP,
        arrays=tuple(arrays.items()),
        keeps_state=True,
        read=(f"written out in operators: {chain.equation(chain.last)}, fires at {chain.firing}, {_reset(fitted)}",),
        assumed=tuple(_assumed(reader, chain, surrogate)),
    )
    return Population(neuron=neuron, drives=drives, results=results)


def _reset(fitted: Fit) -> str:
    return f"reset {fitted.reset}{' one step later' if fitted.reset_delay else ''}"


def _assumed(reader: Reader, chain: Chain, surrogate: Surrogate | None) -> Iterable[str]:
    if surrogate is None:
        yield _SURROGATE
    if len(chain.steps) == 1:
        yield _ONE_STEP
    elif not is_zero(chain.steps[1].definition[{chain.steps[0].facts.membrane}]) and _detached(
        reader, chain, from_spike=False
    ):
        yield _CUT


def _prove(
    reader: Reader,
    chain: Chain,
    drives: Sequence[Drive],
    results: Sequence[fx.Node],
    op: Lif,
    arrays: dict[str, Tensor],
) -> None:
    """Raises: CompileError with the number of spikes that differ between the loop and the op."""
    found = difference(reader, drives, results, op, arrays)
    if found.unequal:
        raise CompileError(
            f"{chain.equation(chain.last)} rounds in another order than a Lif: {found.unequal} of "
            f"{found.total} spikes differ on test inputs",
            chain.steps[0].facts.call.where,
            hint="write m = decay * m + scale * x, or use numbers whose products f32 holds exactly",
        )


def _detached(reader: Reader, chain: Chain, *, from_spike: bool) -> bool:
    """Whether the way from a step's spike, or membrane potential, to the next step's always goes through detach."""
    if len(chain.steps) == 1:
        return False
    first, second = chain.steps[:2]
    nodes = {membrane: node for node, membrane in chain.equations.membranes.items()}
    goal = nodes[second.facts.membrane]
    polynomials = chain.equations.polynomials
    fires = {node for node in reader.calls if reader.compares(node) and node in polynomials}
    reached = {nodes[first.facts.membrane]}
    barred = set() if from_spike else fires
    if from_spike:
        # A sum that is the spike is one whose terms have the surrogate's gradient and cancel.
        sums = {node for node in polynomials if _spike(polynomials[node]) and reader.is_sum(node)}
        reached = {node for node in fires | sums if first.spike in polynomials[node].atoms(Kind.SPIKE)}
    edge = list(reached)
    while edge:
        for user in reader.users.get(edge.pop(), set()):
            passes = reader.elementwise(user) and base(reader.calls[user]) != "detach" and user not in barred
            if passes and user not in reached:
                reached.add(user)
                edge.append(user)
    return goal not in reached


def _check_membranes(reader: Reader, equations: Equations, whole: Sequence[Chain], result: Trace) -> None:
    """Raises: CompileError where something outside a population reads its membrane potential."""
    own = {step.facts.membrane for chain in whole for step in chain.steps}

    def holds_membrane(node: fx.Node) -> bool:
        polynomial = equations.polynomials.get(reader.one(node))
        return polynomial is not None and not own.isdisjoint(polynomial.atoms(Kind.MEMBRANE))

    inside = {node for node in reader.calls if reader.elementwise(node)} - set(equations.values)
    for call in result.calls:
        if call.op in STEP_CALLS or reader.one(call.node) in inside:
            continue
        if any(holds_membrane(source) for source in sources(call)):
            raise call.fail("reads the membrane potential of a neuron that fires", "only its spikes go to other layers")
    (last,) = (call for call in result.calls if call.node is result.output)
    if last.op not in STEP_CALLS and holds_membrane(last.node):
        raise CompileError(
            "the output is the membrane potential of a neuron that fires",
            last.where,
            hint="return its spikes, or let the last layer integrate without a threshold",
        )
