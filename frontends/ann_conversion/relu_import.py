"""The import of a network with ReLU: each ReLU stands in the graph as a population, for one step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from compiler.ir import CompileError, Graph, Loc, Reset
from compiler.ir.ops import Lif
from compiler.passes import FoldBatchNorm
from frontends.ann_conversion.pool_first import pool_first
from frontends.findings import Finding, Ground
from frontends.torch_import.axes import Extents, Layout, Lead, Value
from frontends.torch_import.network import Network
from frontends.torch_import.operands import Operand
from frontends.torch_import.rules import translate
from frontends.torch_import.trace import Call, trace

Tail = Callable[[Tensor], Tensor]

_UNBOUNDED = math.inf
_ONLY_RELU = "integrate-and-fire neurons stand for ReLU and ReLU6; train the network with one of them"
_OTHER_ACTIVATIONS = frozenset(
    (
        *("celu", "elu", "gelu", "glu", "hardshrink", "hardsigmoid", "hardswish", "leaky_relu", "log_sigmoid", "mish"),
        *("prelu", "rrelu", "selu", "sigmoid", "silu", "softplus", "softshrink", "tanh", "tanhshrink", "threshold"),
        *("exp", "abs", "erf", "sin", "cos", "sqrt", "pow", "neg"),
    )
)
# They keep the order of the classes, so that a network may end in one and lose nothing.
_TAILS: Mapping[str, Tail] = MappingProxyType(
    {
        "aten.softmax.int": lambda scores: scores.softmax(1),
        "aten.log_softmax.int": lambda scores: scores.log_softmax(1),
        "aten._softmax.default": lambda scores: scores.softmax(1),
        "aten._log_softmax.default": lambda scores: scores.log_softmax(1),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReluNetwork:
    """A graph over one step, whose populations stand for ReLUs.

    caps: by population, the activation at which the ReLU is cut off; infinite for most.
    tail: what the module still does with the graph's output.
    """

    graph: Graph
    caps: Mapping[str, float]
    tail: Tail
    findings: tuple[Finding, ...]


def import_relu_network(module: nn.Module, example: Tensor, name: str) -> ReluNetwork:
    """Import a network in evaluation mode; batch norms are folded where a layer or a ReLU takes them.

    Shapes: example (N, C, H, W) or (N, C).
    Raises: CompileError naming the operator, module or parameter that has no meaning in a converted network.
    """
    if example.ndim not in (2, 4) or 0 in example.shape:
        raise CompileError(f"the example has shape {tuple(example.shape)}, must be (N, C, H, W) or (N, C)", Loc(name))
    if example.dtype != torch.float32:
        raise CompileError(f"the example is {example.dtype}, must be torch.float32", Loc(name))
    program = trace(module, example, 1, name)
    if program.neurons:
        raise CompileError("the network has spiking neurons already", Loc(name), hint="import it without --ann")
    extents = Extents(timesteps=1, samples=example.shape[0])
    layout = Layout(lead=Lead.MERGED, extents=extents, features=tuple(example.shape[1:]))
    importer = _Importer(Network(program, layout, name))
    return importer.imported()


class _Importer:
    """Goes through the calls of a trace, with rules of its own for what a spiking network has not."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._caps: dict[str, float] = {}
        self._findings: list[Finding] = []
        self._tail: Tail = _unchanged

    def imported(self) -> ReluNetwork:
        network = self._network
        network.start()
        for call in network.trace.calls:
            network.operands[call.node] = self._translated(call)
        if not self._caps:
            raise CompileError("the network has no ReLU to convert", Loc(network.name), hint=_ONLY_RELU)
        output = network.operands[network.trace.output]
        assert isinstance(output, Value)  # the trace keeps what the output depends on, a ReLU among it
        graph = network.graph(output)
        return ReluNetwork(
            graph=pool_first(self._without_batch_norms(graph)),
            caps=self._caps,
            tail=self._tail,
            findings=tuple(self._findings),
        )

    def _translated(self, call: Call) -> Operand:
        cap = _cap(call)
        if cap is not None:
            return self._relu(call, cap)
        if call.op in _TAILS:
            return self._ending(call)
        base = call.op.split(".")[1] if call.op.startswith("aten.") else ""
        if base.rstrip("_") in _OTHER_ACTIVATIONS or base.startswith(("clamp", "hardtanh")):
            raise call.fail(f"the activation {base.rstrip('_')} has no spiking counterpart", _ONLY_RELU)
        return translate(self._network, call)

    def _relu(self, call: Call, cap: float) -> Value:
        x = self._network.value(call)
        op = Lif(decay=1.0, threshold=1.0, reset=Reset.SOFT)
        name = self._network.emit(call, op, x)
        self._caps[name] = cap
        return Value(name=name, lead=x.lead, extents=x.extents)

    def _ending(self, call: Call) -> Operand:
        if call.node is not self._network.trace.output:
            raise call.fail("stands inside the network", "a softmax may only be its last operator")
        x = self._network.value(call)
        if call.integer("dim") not in (1, -1) or len(x.extents) != 1:
            raise call.fail(f"goes over axis {call.integer('dim')} of {x}", "a softmax over classes has dim=1")
        self._tail = _TAILS[call.op]
        text = f"{call.op.split('.')[1].lstrip('_')} at the output is left out: it does not change the order of classes"
        self._findings.append(Finding(place=call.path or "output", ground=Ground.READ, text=text))
        return x

    def _without_batch_norms(self, graph: Graph) -> Graph:
        try:
            return FoldBatchNorm()(graph)
        except CompileError as fault:
            text = f"batch norms stay, each step computes them: {fault.message}"
            self._findings.append(Finding(place=fault.loc.file, ground=Ground.READ, text=text))
            return graph


def _cap(call: Call) -> float | None:
    """Where a ReLU is cut off; None for all that is no ReLU."""
    match call.op.removeprefix("aten.").split(".")[0].rstrip("_"):
        case "relu":
            return _UNBOUNDED
        case "relu6":
            return 6.0
        case "hardtanh":
            return _interval(call, "min_val", "max_val")
        case "clamp" | "clamp_min":
            return _interval(call, "min", "max")
    return None


def _interval(call: Call, low: str, high: str) -> float | None:
    """The upper end of an interval that begins at 0; None for every other."""
    if call.arguments.get(low) != 0:
        return None
    end = call.arguments.get(high)
    if end is None:
        return _UNBOUNDED
    return float(end) if isinstance(end, int | float) and end > 0 else None


def _unchanged(scores: Tensor) -> Tensor:
    return scores
