"""PyTorch front end: a torch module becomes a graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compiler.ir import CompileError, Graph, Loc
from frontends.torch_import.axes import Layout, Value, layouts
from frontends.torch_import.network import Network
from frontends.torch_import.rules import translate
from frontends.torch_import.trace import trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A graph, and how the module's own tensors stand to it."""

    graph: Graph
    input: Layout
    output: Value


def from_torch(module: nn.Module, example: Tensor, timesteps: int, *, name: str = "network") -> Graph:
    """Import a network in evaluation mode, its neurons starting from their reset state.

    The input is an image (N, ...) that the network repeats over time, or a sequence, separate (T, N, ...) or
    merged time-major (T * N, ...): the first of these readings under which every operator has a meaning.
    Sequences of only 0 and 1 in the example are spikes. In the graph T and N always stand separate.

    Shapes: lines of features (N, C, L) become (N, C, 1, L).
    Raises: CompileError naming the operator, module or parameter that the graph cannot express.
    """
    return import_module(module, example, timesteps, name=name).graph


def import_module(module: nn.Module, example: Tensor, timesteps: int, *, name: str = "network") -> Imported:
    """As `from_torch`, with the layout of the module's input and output.

    Raises: as `from_torch`.
    """
    if timesteps < 1:
        raise CompileError(f"timesteps is {timesteps}, must be at least 1", Loc(name))
    if example.dtype != torch.float32:
        raise CompileError(f"the example is {example.dtype}, must be torch.float32", Loc(name))
    shape = tuple(example.shape)
    readings = layouts(shape, timesteps)
    if not readings:
        raise CompileError(
            f"the example has shape {shape}",
            Loc(name),
            hint=f"(N, ...), ({timesteps}, N, ...) or ({timesteps} * N, ...) with 1 to 3 axes of features",
        )
    program = trace(module, example, timesteps, name)
    faults: list[tuple[int, CompileError]] = []
    for layout in readings:
        network = Network(program, layout, name)
        try:
            return _imported(network)
        except CompileError as fault:
            faults.append((len(network.operands), fault))
    # The reading that got furthest is most likely the intended one.
    raise max(faults, key=lambda entry: entry[0])[1]


def _imported(network: Network) -> Imported:
    network.start()
    for call in network.trace.calls:
        network.operands[call.node] = translate(network, call)
    output = network.operands[network.trace.output]
    assert isinstance(output, Value)
    return Imported(graph=network.graph(), input=network.layout, output=output)
