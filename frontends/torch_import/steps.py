"""Rules for neurons that do one step a call: the calls of a loop over time become one population."""

from __future__ import annotations

from compiler.ir import CompileError, Loc, Param, Reading
from compiler.ir.ops import Li, Lif, Readout
from frontends.torch_import.adapters import Neuron
from frontends.torch_import.axes import Lead, Value
from frontends.torch_import.call import Call
from frontends.torch_import.network import Network, Population
from frontends.torch_import.operands import Constant, Operand, Several, State
from frontends.torch_import.sequences import encode
from frontends.torch_import.trace import RECURRENCE

_COPIES = ("aten.alias.default", "aten.clone.default", "aten.detach.default")
_ENDS = "return the last step, the sum or mean over time, or all steps stacked"
_LOOP = "a loop over time does the same at each step, and hands each neuron's state from step to step"


def neuron_step(network: Network, call: Call) -> Several:
    """The spikes of one step, and the membrane potential after it."""
    number, at = _stepped(network, call)
    population = network.populations[number]
    spikes = population.source.of(population.node).step(at)
    membrane = State(population=number, at=at) if isinstance(population.op, Lif) else spikes
    return Several((spikes, membrane))


def recurrence(network: Network, call: Call) -> Operand:
    """The spikes, or of a leaky integrator the membrane potential, of one step."""
    return neuron_step(network, call).items[0]


def _stepped(network: Network, call: Call) -> tuple[int, int | None]:
    """The population that a call is a step of, and the step."""
    neuron = network.trace.neurons[call.integer("index")]
    x = _drive(network, call)
    number = _continued(network, call, neuron)
    if number is None:
        number = _started(network, call, neuron, x)
    population = network.populations[number]
    step = None if network.single else population.steps
    if x.name != population.source.name:
        raise call.fail(
            f"takes {x.name} at step {step}, and {population.source.name} at the steps before",
            f"{_LOOP}; two layers need two neuron modules",
        )
    if x.lead is Lead.STEP and x.at != step:
        raise call.fail(f"takes step {x.at} of {x.name} at its own step {step}", f"{_LOOP}; delays are not expressed")
    population.steps += 1
    return number, step


def _drive(network: Network, call: Call) -> Value:
    """The input as a sequence that one step is taken of; an image comes again at each step."""
    x = network.value(call, "x")
    if x.lead is Lead.IMAGE:
        return encode(network, call.outside(), x, Lead.IMAGE)
    if x.lead is Lead.STEP:
        return x
    raise call.fail(f"the neuron takes one time step a call, (N, ...), it gets {x}", "call it in a loop over time")


def _continued(network: Network, call: Call, neuron: Neuron) -> int | None:
    """The population whose state is handed in; None for an initial state.

    Raises: CompileError for another state.
    """
    if call.arguments["state"] is None:
        return None
    operand = network.operand(call, "state")
    match operand:
        case Constant() if _is_initial(neuron, operand):
            return None
        case State():
            number, at = operand.population, operand.at
        case Value() if isinstance(neuron.op, Li) or call.op == RECURRENCE:  # a spiking module's value is no state
            found = [n for n, population in enumerate(network.populations) if population.node == operand.name]
            number, at = found[0] if found else -1, operand.at
        case _:
            number, at = -1, None
    index = call.integer("index")
    if number < 0 or network.populations[number].index != index or network.single:
        raise call.fail("takes a state that is neither its initial one nor that of its last step", _LOOP)
    if at != network.populations[number].steps - 1:
        raise call.fail(f"goes on from its state after step {at}, not from its last", _LOOP)
    return number


def _is_initial(neuron: Neuron, state: Constant) -> bool:
    initial = neuron.op.initial
    return not isinstance(initial, Param) and state.is_everywhere(initial)


def _started(network: Network, call: Call, neuron: Neuron, x: Value) -> int:
    """A new population."""
    index = call.integer("index")
    before = [population for population in network.populations if population.index == index]
    if any(population.source.name == x.name for population in before) and not network.single:
        raise call.fail(
            "starts from its initial state at each step: no state is handed in",
            f"{_LOOP}: spikes, state = neuron(x, state)",
        )
    if before and neuron.keeps_state:
        raise call.fail("this neuron is called for two layers; it would go on from its state", "use two modules")
    source = x.sequence(Lead.STEP)
    node = network.populate(call, neuron, source)
    network.populations.append(Population(index=index, op=neuron.op, source=source, node=node, call=call))
    return len(network.populations) - 1


def result(network: Network) -> Value:
    """The network's output: a sequence, what was read from one, or of a loop the last step.

    Raises: CompileError for an output that no node holds, and for a loop that does not go over all steps.
    """
    _check_steps(network)
    output = network.trace.output
    operand = network.operands[output]
    call = next((call.outside() for call in network.trace.calls if call.node is output), None)
    if call is None:
        if isinstance(operand, Value):
            return operand
        raise CompileError("the network's output is a constant", Loc(network.name))
    value = network.as_value(call, operand, "the output")
    if value.lead not in (Lead.STEP, Lead.STEP_ROW) or network.single:
        return value
    if value.at != network.layout.extents.timesteps - 1:
        raise call.fail(f"the output is {value}", _ENDS)
    lead = Lead.IMAGE if value.lead is Lead.STEP else Lead.UNSQUEEZED
    return value.of(network.emit(call, Readout(kind=Reading.LAST), value)).step(None, lead)


def _check_steps(network: Network) -> None:
    timesteps = 1 if network.single else network.layout.extents.timesteps
    for population in network.populations:
        call = population.call
        if population.steps != timesteps and network.trace.step_calls[population.index] >= timesteps:
            raise call.fail(f"the output depends on {population.steps} of the {timesteps} steps of this neuron", _ENDS)
        if population.steps != timesteps:
            raise call.fail(
                f"the neuron does {population.steps} steps, the network is imported with timesteps={timesteps}",
                "every neuron is called once, or once for each time step",
            )
        neuron = network.trace.neurons[population.index]
        if network.single:
            _check_goes_on(network, call, neuron)


def _check_goes_on(network: Network, call: Call, neuron: Neuron) -> None:
    """Raises: CompileError where one step of many would start from the neuron's initial state each time."""
    if call.integer("index") in network.trace.restarted:
        raise call.fail(
            "the network does one step and sets this neuron's state itself: it would start anew each time",
            "reset outside the network's forward, or put the loop over time into it",
        )
    is_carried = call.arguments["state"] is not None or not neuron.keeps_state
    if is_carried and not _returned(network, call):
        raise call.fail(
            "the network does one step and does not return this neuron's state: it would start anew each time",
            "return the state beside the output, and choose the output with output=INDEX",
        )


def _returned(network: Network, call: Call) -> bool:
    """Whether a caller gets the state."""
    results = [user for user in call.node.users if user.args[1:] == (1,)]
    for node in results:
        results += [user for user in node.users if str(user.target) in _COPIES]
    return any(node in network.trace.returned for node in results)
