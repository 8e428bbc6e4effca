"""SpikingJelly's neurons, read from the live modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol, cast

from torch import nn

from compiler.ir import CompileError, Loc, Reset, Surrogate, SurrogateKind
from compiler.ir.ops import Lif
from frontends.torch_import.adapters.base import Expects, Neuron, unsupported

NEURONS = "spikingjelly.activation_based.neuron"
# Stateful layers that are the identity in evaluation mode.
IDENTITIES = ("Dropout", "Dropout2d")


class _SpikingJellyNode(Protocol):
    """What is read of SpikingJelly's LIFNode and IFNode (which has neither tau nor decay_input)."""

    tau: float
    decay_input: bool
    v_threshold: float
    v_reset: float | None
    detach_reset: bool
    step_mode: str
    surrogate_function: _SpikingJellySurrogate

    def get_reset_value(self, name: str) -> object: ...


class _SpikingJellySurrogate(Protocol):
    alpha: float
    spiking: bool


def spikingjelly(path: str, module: nn.Module) -> Neuron | None:
    """The module as an op; None where it is no neuron.

    Raises: CompileError for a stateful module that no op expresses.
    """
    origins = [(cls.__module__, cls.__qualname__) for cls in type(module).__mro__]
    package, name = origins[0]
    if package.startswith(NEURONS) and name in ("LIFNode", "IFNode"):
        return read_node(path, cast(_SpikingJellyNode, module))
    stateful = any(
        origin.startswith(NEURONS) or (origin.startswith("spikingjelly.") and cls == "MemoryModule")
        for origin, cls in origins
    )
    if stateful and name not in IDENTITIES:
        raise unsupported(path, module, "of SpikingJelly, LIFNode and IFNode with step_mode 'm' are imported")
    return None


def read_node(path: str, node: _SpikingJellyNode) -> Neuron:
    """LIFNode and IFNode, starting from their reset state.

    Source: SpikingJelly 2.0; decay = 1 - 1 / tau, input_scale = 1 / tau with decay_input, and
    leak_bias = v_reset / tau; v_reset None is the soft reset.
    """
    kind = type(node).__name__
    if node.step_mode != "m":
        raise CompileError(
            f"{path}: {kind} with step_mode {node.step_mode!r} keeps its state between calls",
            Loc(path),
            hint="functional.set_step_mode(net, 'm') and an input (T, N, ...)",
        )
    initial = node.get_reset_value("v")
    if not isinstance(initial, float | int):
        raise CompileError(f"{path}: the reset value of v is not one number", Loc(path))
    leak, decay_input = (1.0 / node.tau, node.decay_input) if kind == "LIFNode" else (0.0, False)
    op = Lif(
        decay=1.0 - leak,
        threshold=float(node.v_threshold),
        input_scale=leak if decay_input else 1.0,
        leak_bias=leak * (node.v_reset or 0.0),
        reset=Reset.SOFT if node.v_reset is None else Reset.HARD,
        reset_value=node.v_reset or 0.0,
        detach_reset=node.detach_reset,
        initial=float(initial),
        surrogate=_spikingjelly_surrogate(path, node.surrogate_function),
    )
    return Neuron(op=op, expects=Expects.SEPARATE, keeps_state=True)


def _spikingjelly_surrogate(path: str, function: _SpikingJellySurrogate) -> Surrogate:
    """Source: the backward functions of SpikingJelly 2.0's surrogate module."""
    name = type(function).__name__
    if not getattr(function, "spiking", False):
        raise CompileError(f"{path}: surrogate {name} does not emit spikes (spiking=False)", Loc(path))
    if name not in _SURROGATES:
        raise CompileError(
            f"{path}: surrogate {name} is not supported",
            Loc(path),
            hint=f"supported: {', '.join(_SURROGATES)}",
        )
    return _SURROGATES[name](float(function.alpha))


_SURROGATES: Mapping[str, Callable[[float], Surrogate]] = MappingProxyType(
    {
        "ATan": lambda a: Surrogate(kind=SurrogateKind.ATAN, width=1 / a, scale=a / 2),
        "Sigmoid": lambda a: Surrogate(kind=SurrogateKind.SIGMOID, width=1 / a, scale=a / 4),
        "SoftSign": lambda a: Surrogate(kind=SurrogateKind.FAST_SIGMOID, width=1 / a, scale=a / 2),
        "SuperSpike": lambda a: Surrogate(kind=SurrogateKind.SUPERSPIKE, width=1.0, scale=a),
        "PiecewiseQuadratic": lambda a: Surrogate(kind=SurrogateKind.TRIANGLE, width=1 / a, scale=a),
        "PiecewiseExp": lambda a: Surrogate(kind=SurrogateKind.EXPONENTIAL, width=1 / a, scale=a / 2),
        "Rect": lambda a: Surrogate(kind=SurrogateKind.RECTANGLE, width=0.5 / a, scale=a),
    }
)
