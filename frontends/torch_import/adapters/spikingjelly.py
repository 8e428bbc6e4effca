"""SpikingJelly's neurons, read from the live modules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from compiler.ir import Reset, Surrogate, SurrogateKind
from compiler.ir.ops import Lif
from frontends.torch_import.adapters.base import (
    Expects,
    Neuron,
    bind,
    check_unchanged,
    framework_class,
    origin,
    refused,
    unsupported,
)
from frontends.torch_import.adapters.readings import Readings, shown

NEURONS = "spikingjelly.activation_based.neuron"
SURROGATES = "spikingjelly.activation_based.surrogate"
# Stateful layers that are the identity in evaluation mode.
IDENTITIES = ("Dropout", "Dropout2d")
INTEGRATE_AND_FIRE = ("IFNode", "SimpleIFNode", "HalfThresholdIFNode")
LEAKY = ("LIFNode", "SimpleLIFNode", "ParametricLIFNode")
HINT = f"of SpikingJelly, {', '.join(LEAKY + INTEGRATE_AND_FIRE)} are imported"


class _SpikingJellyNode(Protocol):
    """What is read of SpikingJelly's nodes; IFNode has no tau and decay_input, ParametricLIFNode has w for tau."""

    tau: object
    w: Tensor
    decay_input: bool
    v_threshold: object
    v_reset: object
    detach_reset: bool
    step_mode: str
    surrogate_function: nn.Module

    def get_reset_value(self, name: str) -> object: ...


@dataclass(frozen=True, slots=True)
class SpikesOnly:
    """A module that keeps its state to itself."""

    path: str

    def unpack(self, arguments: tuple[object, ...], named: dict[str, object]) -> tuple[Tensor, Tensor | None]:
        """The input alone."""
        (x,) = bind(self.path, ("x",), arguments, named)
        return cast(Tensor, x), None

    def pack(self, spikes: Tensor, membrane: Tensor) -> Tensor:
        """The spikes alone."""
        return spikes


def spikingjelly(path: str, module: nn.Module, timesteps: int) -> Neuron | None:
    """The module as an op; None where it is no neuron.

    Raises: CompileError for a stateful module that no op expresses.
    """
    base = framework_class(module, "spikingjelly")
    if base.__module__.startswith(NEURONS) and base.__name__ in LEAKY + INTEGRATE_AND_FIRE:
        check_unchanged(path, module, base)
        return read_node(path, module, base.__name__)
    stateful = any(
        cls.__module__.startswith(NEURONS) or origin(cls) == "spikingjelly.activation_based.base.MemoryModule"
        for cls in type(module).__mro__
    )
    if stateful and base.__name__ not in IDENTITIES:
        raise unsupported(path, module, HINT)
    return None


def read_node(path: str, module: nn.Module, kind: str) -> Neuron:
    """A node with one state, starting from its reset state.

    Source: SpikingJelly 2.0; h = v + (x - (v - v_reset)) / tau with decay_input, else v - (v - v_reset) / tau + x;
    1 / tau is sigmoid(w) for ParametricLIFNode; v_reset None is the soft reset; it fires where h >= v_threshold.
    """
    node = cast(_SpikingJellyNode, module)
    if getattr(node, "_neuron_precision", None) is not None:
        raise refused(path, module, "it computes in a reduced precision", "leave the neuron's precision unset")
    readings = Readings(path)
    leak, scale, exact = _charge(readings, node, kind)
    soft = node.v_reset is None
    reset = readings.value("v_reset", 0.0 if soft else node.v_reset)
    bias = leak * reset
    threshold = readings.value("v_threshold", node.v_threshold)
    initial = readings.value("the reset value of v", node.get_reset_value("v"))
    readings.say("v_threshold", threshold)
    readings.read.append("soft reset" if soft else f"hard reset to {shown(reset)}")
    if not torch.equal(initial.float(), reset.float()):
        readings.say("starts from v", initial)
    if not exact or bool(bias.any()):
        form = "v + (x - v) / tau" if node.__dict__.get("decay_input") else "v - v / tau + x"
        readings.assumed.append(f"{form} is computed as decay * v + input_scale * x: the last bits may round otherwise")
    op = Lif(
        decay=readings.number("decay", 1.0 - leak),
        threshold=readings.number("threshold", threshold),
        input_scale=readings.number("input_scale", scale),
        leak_bias=readings.number("leak_bias", bias),
        reset=Reset.SOFT if soft else Reset.HARD,
        reset_value=readings.number("reset_value", reset),
        detach_reset=bool(node.detach_reset),
        initial=readings.number("initial", initial),
        surrogate=_surrogate(readings, node.surrogate_function),
    )
    return Neuron(
        op=op,
        expects=Expects.STEP if node.step_mode == "s" else Expects.SEPARATE,
        arrays=tuple(readings.arrays.items()),
        keeps_state=True,
        step=SpikesOnly(path) if node.step_mode == "s" else None,
        channel_axes=readings.channel_axes,
        read=tuple(readings.read),
        assumed=(*readings.assumed, "starts as after functional.reset_net"),
    )


def _charge(readings: Readings, node: _SpikingJellyNode, kind: str) -> tuple[Tensor, Tensor, bool]:
    """1 / tau, the input's factor, and whether the op rounds as the node does."""
    one = torch.ones((), dtype=torch.float64)
    if kind in INTEGRATE_AND_FIRE:
        return torch.zeros_like(one), one, True
    if kind == "ParametricLIFNode":
        leak = torch.sigmoid(readings.value("w", node.w))
        # the complement of a 32-bit sigmoid is taken in 64 bits, then rounded once
        leak = leak if leak.ndim else leak.double()
        readings.say("tau", 1.0 / leak, " (learned, as it stands)")
    else:
        tau = readings.value("tau", node.tau)
        if bool((tau < 1.0).any()):
            raise readings.fail(f"tau is {float(tau):g}, must be at least 1", "tau counts time steps")
        leak = 1.0 / tau
        readings.say("tau", tau)
    readings.read.append(f"decay_input {bool(node.decay_input)}")
    halves = not leak.ndim and math.frexp(float(leak))[0] == 0.5
    return leak, leak if node.decay_input else one, halves and not node.decay_input


def _surrogate(readings: Readings, function: nn.Module) -> Surrogate:
    """Source: the backward functions of SpikingJelly 2.0's surrogate module."""
    name = type(function).__name__
    if not getattr(function, "spiking", False):
        raise readings.fail(f"surrogate {name} does not emit spikes (spiking=False)")
    if type(function).__module__ != SURROGATES or name not in _SURROGATES:
        raise readings.fail(f"surrogate {name} is not supported", f"supported: {', '.join(_SURROGATES)}")
    parameter, read = _SURROGATES[name]
    if name == "QPseudoSpike" and function.alpha != 2:
        raise readings.fail(f"surrogate QPseudoSpike with alpha {function.alpha} is not supported, with 2 it is")
    if name == "PiecewiseLeakyReLU" and function.c != 0:
        raise readings.fail(f"surrogate PiecewiseLeakyReLU with c {function.c} is not supported, with 0 it is")
    alpha = float(readings.value(f"surrogate {name}: {parameter}", getattr(function, parameter)))
    if alpha <= 0.0:
        raise readings.fail(f"surrogate {name}: {parameter} is {alpha:g}, must be positive")
    surrogate = read(alpha)
    readings.say_surrogate(name, surrogate)
    return surrogate


# The name of the surrogate's parameter, and what it means.
_SURROGATES: Mapping[str, tuple[str, Callable[[float], Surrogate]]] = MappingProxyType(
    {
        "ATan": ("alpha", lambda a: Surrogate(kind=SurrogateKind.ATAN, width=1 / a, scale=a / 2)),
        "Sigmoid": ("alpha", lambda a: Surrogate(kind=SurrogateKind.SIGMOID, width=1 / a, scale=a / 4)),
        "SoftSign": ("alpha", lambda a: Surrogate(kind=SurrogateKind.FAST_SIGMOID, width=1 / a, scale=a / 2)),
        "SuperSpike": ("alpha", lambda a: Surrogate(kind=SurrogateKind.SUPERSPIKE, width=1.0, scale=a)),
        "PiecewiseQuadratic": ("alpha", lambda a: Surrogate(kind=SurrogateKind.TRIANGLE, width=1 / a, scale=a)),
        "PiecewiseExp": ("alpha", lambda a: Surrogate(kind=SurrogateKind.EXPONENTIAL, width=1 / a, scale=a / 2)),
        "Rect": ("alpha", lambda a: Surrogate(kind=SurrogateKind.RECTANGLE, width=0.5 / a, scale=a)),
        "QPseudoSpike": ("alpha", lambda a: Surrogate(kind=SurrogateKind.FAST_SIGMOID, width=1 / a, scale=1.0)),
        "PiecewiseLeakyReLU": ("w", lambda w: Surrogate(kind=SurrogateKind.RECTANGLE, width=w, scale=0.5 / w)),
    }
)
