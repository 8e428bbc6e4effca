"""PyTorch front end: a torch module becomes a graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compiler.ir import CompileError, Graph, Loc, Surrogate
from frontends.findings import Finding, Ground
from frontends.torch_import.axes import Layout, Lead, Value, layouts, step_layout
from frontends.torch_import.network import Network
from frontends.torch_import.recurrence import fold_recurrences
from frontends.torch_import.rules import translate
from frontends.torch_import.steps import result
from frontends.torch_import.trace import Trace, trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A graph, how the module's own tensors stand to it, and what was found about its neurons."""

    graph: Graph
    input: Layout
    output: Value
    findings: tuple[Finding, ...]
    stepped_norms: tuple[str, ...] = ()  # batch norms that see one time step a call, whose statistics are a step's
    dropouts: tuple[tuple[str, float], ...] = ()  # which evaluation mode leaves out: where, and the probability


def from_torch(
    module: nn.Module,
    example: Tensor,
    timesteps: int,
    *,
    name: str = "network",
    output: int | None = None,
    repeat_input: bool = False,
    surrogate: Surrogate | None = None,
) -> Graph:
    """Import a network in evaluation mode, its neurons starting from their reset state.

    The input is an image (N, ...) that the network repeats over time, or a sequence, separate (T, N, ...) or
    merged time-major (T * N, ...), or with the samples outermost, (N, T, ...) or (N * T, ...): the first of these
    readings under which every operator has a meaning. Sequences of only 0 and 1 in the example are spikes. In the
    graph T and N always stand separate, time first.

    Neurons that do one step a call stand in a loop over time: each is called T times, with the same step of one
    sequence. Where each is called once, the network is one step, its example is (N, ...), and the graph repeats it
    over a sequence (T, N, ...), or, with `repeat_input`, over the same image (N, ...) at each step.
    Sums over time are means of T times each step: the same bits for spikes, otherwise a few roundings apart.
    A neuron that a loop writes out in operators becomes a Lif or Li if it follows the equation of one, and both give
    the same spikes when they are executed side by side; its surrogate is assumed.

    output: which output, where the network returns several; counted as tuples, lists and dicts are flattened.
    surrogate: of neurons that the forward writes out in operators, which do not show theirs; None: a rectangle.
    Hooks on neurons are taken to look at spikes only, and are left out.
    Shapes: lines of features (N, C, L) become (N, C, 1, L).
    Raises: CompileError naming the operator, module or parameter that the graph cannot express.
    """
    imported = import_module(
        module, example, timesteps, name=name, output=output, repeat_input=repeat_input, surrogate=surrogate
    )
    return imported.graph


def import_module(
    module: nn.Module,
    example: Tensor,
    timesteps: int,
    *,
    name: str = "network",
    output: int | None = None,
    repeat_input: bool = False,
    surrogate: Surrogate | None = None,
) -> Imported:
    """As `from_torch`, with the layout of the module's input and output.

    Raises: as `from_torch`.
    """
    if timesteps < 1:
        raise CompileError(f"timesteps is {timesteps}, must be at least 1", Loc(name))
    if example.dtype != torch.float32:
        raise CompileError(f"the example is {example.dtype}, must be torch.float32", Loc(name))
    shape = tuple(example.shape)
    if not layouts(shape, timesteps):
        raise CompileError(
            f"the example has shape {shape}",
            Loc(name),
            hint=f"(N, ...), ({timesteps}, N, ...) or ({timesteps} * N, ...) with 1 to 3 axes of features",
        )
    traced = fold_recurrences(trace(module, example, timesteps, name, output), timesteps, surrogate)
    faults: list[tuple[int, CompileError]] = []
    for network in _readings(traced, shape, timesteps, name, repeat_input):
        try:
            return _imported(network)
        except CompileError as fault:
            faults.append((len(network.operands), fault))
    # The reading that got furthest is most likely the intended one.
    furthest = max(faults, key=lambda entry: entry[0])[1]
    said = f"timesteps={timesteps}" in furthest.message
    hints = filter(None, (furthest.hint, "" if said else _misread(traced, shape, timesteps)))
    raise CompileError(furthest.message, furthest.loc, hint="\n  ".join(hints))


def _misread(traced: Trace, shape: tuple[int, ...], timesteps: int) -> str:
    """What the caller may have got wrong, told from how often each neuron is called."""
    calls = set(traced.step_calls.values())
    if calls == {1} and shape[0] == timesteps:
        return f"the network does one time step a call: its example is one step, (N, ...), not {shape}"
    steps = calls.pop() if len(calls) == 1 else 1
    if steps % timesteps and steps != 1:  # a multiple is that of a module in several places
        return f"each neuron does {steps} time steps in one call of the network, not timesteps={timesteps}"
    return ""


def _readings(
    traced: Trace, shape: tuple[int, ...], timesteps: int, name: str, repeat_input: bool
) -> tuple[Network, ...]:
    """What the example's axes, and the calls of neurons, can mean."""
    calls = set(traced.step_calls.values())
    loops = layouts(shape, timesteps)
    single: tuple[Layout, ...] = ()
    last: tuple[Layout, ...] = ()
    if calls == {1}:
        # of one time step a loop is told by the axis that it goes over, or by the resets around it
        one_step = loops if timesteps == 1 else ()
        loops = tuple(layout for layout in one_step if layout.lead is not Lead.IMAGE)
        last = tuple(layout for layout in one_step if layout.lead is Lead.IMAGE)
        single = step_layout(shape, timesteps, repeated=repeat_input)
        if not (single or loops):
            raise CompileError(
                f"the network does one time step a call, and the example has shape {shape}",
                Loc(name),
                hint="(N, ...) with 1 to 3 axes of features",
            )
    elif repeat_input:
        raise CompileError("repeat_input is for networks that do one time step a call; this one does all", Loc(name))
    return (
        *(Network(traced, layout, name, looped=bool(calls)) for layout in loops),
        *(Network(traced, layout, name, looped=True, single=True) for layout in single),
        *(Network(traced, layout, name, looped=True) for layout in last),
    )


def _imported(network: Network) -> Imported:
    network.start()
    for call in network.trace.calls:
        network.operands[call.node] = translate(network, call)
    output = result(network)
    findings = tuple(network.findings)
    if network.single:
        text = f"one call is one time step: it is done T = {network.layout.extents.timesteps} times"
        findings = (Finding(place=network.name, ground=Ground.ASSUMED, text=text), *findings)
    return Imported(
        graph=network.graph(output),
        input=network.layout,
        output=output,
        findings=findings,
        stepped_norms=tuple(name for name, calls in network.norms.items() if calls > 1 or network.single),
        dropouts=tuple(network.dropouts),
    )
