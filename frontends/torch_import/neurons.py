"""Neuron modules: recognised, read into an op, and made opaque to the tracer."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from compiler.ir import CompileError, Loc, Number, Param, Reset, Surrogate, SurrogateKind
from compiler.ir.ops import Li, Lif
from frontends.nn import LI, LIF

SPIKINGJELLY_NEURONS = "spikingjelly.activation_based.neuron"
# Stateful layers of SpikingJelly that are the identity in evaluation mode.
SPIKINGJELLY_IDENTITIES = ("Dropout", "Dropout2d")
FOREIGN_PACKAGES = ("snntorch", "norse", "sinabs")


class Expects(Enum):
    """Where a neuron module takes time from."""

    SEPARATE = "its own first axis, (T, N, ...)"
    MERGED = "the merged first axis, (T * N, ...)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Neuron:
    """A neuron module as an op, and the module's arrays that the op refers to."""

    op: Lif | Li
    expects: Expects
    arrays: tuple[tuple[str, Tensor], ...] = ()
    keeps_state: bool = False  # a second call within one pass would go on from the first


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


@torch.library.custom_op("spikec::neuron", mutates_args=())
def _opaque_neuron(x: Tensor, index: int) -> Tensor:
    return x.clone()


@_opaque_neuron.register_fake
def _(x: Tensor, index: int) -> Tensor:
    return torch.empty_like(x)


def _stand_in(module: nn.Module, index: int) -> nn.Module:
    """The same neuron, as far as its network can see, with an opaque forward and no hooks."""

    def forward(x: Tensor) -> Tensor:
        result: Tensor = torch.ops.spikec.neuron(x, index)
        return result

    stand_in = copy.copy(module)
    stand_in._modules = {}
    stand_in._forward_hooks = OrderedDict()
    stand_in._forward_pre_hooks = OrderedDict()
    stand_in.forward = forward
    return stand_in


def opaque_copy(module: nn.Module, timesteps: int) -> tuple[nn.Module, tuple[Neuron, ...]]:
    """A copy in evaluation mode whose neurons are calls of `spikec::neuron(x, index)`, and the neurons.

    Raises: CompileError for a neuron that no op expresses.
    """
    neurons: list[Neuron] = []
    stand_ins: dict[int, object] = {}  # in the form of deepcopy's memo
    for path, child in module.named_modules():
        neuron = _neuron(path or type(child).__name__, child, timesteps)
        if neuron is not None:
            stand_ins[id(child)] = _stand_in(child, len(neurons))
            neurons.append(neuron)
    return copy.deepcopy(module, stand_ins).eval(), tuple(neurons)


def _neuron(path: str, module: nn.Module, timesteps: int) -> Neuron | None:
    if isinstance(module, LIF | LI):
        return _own(path, module, timesteps)
    if isinstance(module, nn.RNNBase):
        hint = "spiking networks use a neuron module here, as spikec.nn.LIF"
        raise CompileError(
            f"{path}: {type(module).__name__} is not an operator of spiking networks", Loc(path), hint=hint
        )
    origins = [(cls.__module__, cls.__qualname__) for cls in type(module).__mro__]
    package, name = origins[0]
    if any(origin.split(".")[0] in FOREIGN_PACKAGES for origin, _ in origins):
        raise _unsupported(path, module, "spikec's own LIF and SpikingJelly's LIFNode and IFNode are imported")
    if package.startswith(SPIKINGJELLY_NEURONS) and name in ("LIFNode", "IFNode"):
        return _spikingjelly(path, cast(_SpikingJellyNode, module))
    stateful = any(
        origin.startswith(SPIKINGJELLY_NEURONS) or (origin.startswith("spikingjelly.") and cls == "MemoryModule")
        for origin, cls in origins
    )
    if stateful and name not in SPIKINGJELLY_IDENTITIES:
        raise _unsupported(path, module, "of SpikingJelly, LIFNode and IFNode with step_mode 'm' are imported")
    return None


def _unsupported(path: str, module: nn.Module, hint: str) -> CompileError:
    cls = type(module)
    return CompileError(f"{path}: neuron {cls.__module__}.{cls.__qualname__} is not supported", Loc(path), hint=hint)


def _own(path: str, module: LIF | LI, timesteps: int) -> Neuron:
    if type(module).forward not in (LIF.forward, LI.forward):
        raise _unsupported(path, module, "its forward is not that of LIF or LI")
    if module.timesteps not in (None, timesteps):
        raise CompileError(
            f"{path}: {type(module).__name__} has timesteps={module.timesteps}, "
            f"the network is imported with timesteps={timesteps}",
            Loc(path),
            hint=f"spikec.nn.set_timesteps(module, {timesteps})",
        )
    arrays: list[tuple[str, Tensor]] = []

    def number(name: str) -> Number:
        value: float | Tensor = getattr(module, name)
        if isinstance(value, float):
            return value
        arrays.append((f"{path}.{name}", value))
        return Param(f"{path}.{name}")

    op: Lif | Li
    if isinstance(module, LI):
        op = Li(
            decay=number("decay"),
            input_scale=number("input_scale"),
            leak_bias=number("leak_bias"),
            initial=number("initial"),
        )
    else:
        op = Lif(
            decay=number("decay"),
            threshold=number("threshold"),
            input_scale=number("input_scale"),
            leak_bias=number("leak_bias"),
            reset=module.reset,
            reset_value=number("reset_value"),
            reset_delay=module.reset_delay,
            compare=module.compare,
            detach_reset=module.detach_reset,
            initial=number("initial"),
            surrogate=module.surrogate,
        )
    expects = Expects.SEPARATE if module.timesteps is None else Expects.MERGED
    return Neuron(op=op, expects=expects, arrays=tuple(arrays))


def _spikingjelly(path: str, node: _SpikingJellyNode) -> Neuron:
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
