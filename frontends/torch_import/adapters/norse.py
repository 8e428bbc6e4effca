"""norse's neurons, read from the live modules."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from compiler.ir import Compare, CompileError, Loc, Reset, Surrogate, SurrogateKind
from compiler.ir.ops import Li, Lif
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
from frontends.torch_import.adapters.readings import Readings

MODULES = "norse.torch.module."
CONTAINERS = ("sequential", "lift", "regularization")
HINT = "of norse, LIFBoxCell, LIBoxCell, IAF and IAFCell are imported, LI and LIF where their current lasts one step"
# By the function that computes a step: the state's class.
_STEPS: Mapping[str, str] = MappingProxyType(
    {
        "norse.torch.functional.lif_box.lif_box_feed_forward_step": "LIFBoxFeedForwardState",
        "norse.torch.functional.leaky_integrator_box.li_box_feed_forward_step": "LIBoxState",
        "norse.torch.functional.iaf.iaf_feed_forward_step": "IAFFeedForwardState",
        "norse.torch.functional.lif.lif_feed_forward_step": "LIFFeedForwardState",
        "norse.torch.functional.leaky_integrator.li_feed_forward_step": "LIState",
    }
)


class _Parameters(Protocol):
    """What is read of a module's parameters; each kind of neuron has some of them."""

    tau_mem_inv: object
    tau_syn_inv: object
    v_leak: object
    v_th: object
    v_reset: object
    method: str
    alpha: object
    reset_method: object


class _NorseModule(Protocol):
    activation: object
    state_fallback: object
    p: _Parameters
    dt: object
    record_states: bool


class _State(Protocol):
    v: Tensor
    i: object


@dataclass(frozen=True, slots=True)
class StateCall:
    """(x, state) -> (spikes, state).

    state: makes norse's own tuple. current: it has a synaptic current, which the op has no place for.
    """

    path: str
    state: Callable[..., object]
    current: bool

    def unpack(self, arguments: tuple[object, ...], named: dict[str, object]) -> tuple[Tensor, Tensor | None]:
        """The input and the state's membrane; a current that comes from elsewhere is refused."""
        x, state = bind(self.path, ("input_tensor", "state"), arguments, named)
        assert isinstance(x, Tensor)
        if state is None:
            return x, None
        membrane = getattr(state, "v", None)
        if not isinstance(membrane, Tensor) or (self.current and cast(_State, state).i is not None):
            reason = f"a state of one's own is handed in, {type(state).__name__}"
            raise CompileError(f"{self.path}: {reason}", Loc(self.path), hint="hand in None at the first step")
        return x, membrane

    def pack(self, spikes: Tensor, membrane: Tensor) -> object:
        """As the module returns them; nothing can read the current."""
        return spikes, self.state(v=membrane, i=None) if self.current else self.state(v=membrane)


def norse(path: str, module: nn.Module, timesteps: int) -> Neuron | None:
    """The module as an op; None where it is no neuron.

    Raises: CompileError for a neuron that no op expresses.
    """
    base = framework_class(module, "norse")
    if not base.__module__.startswith(MODULES) or base.__module__.removeprefix(MODULES) in CONTAINERS:
        return None
    if "state" not in inspect.signature(module.forward).parameters:
        return None
    node = cast(_NorseModule, module)
    if origin(getattr(module, "activation", None)) not in _STEPS:
        raise unsupported(path, module, HINT)
    check_unchanged(path, module, base)
    starts = origin(node.state_fallback)
    if starts != f"{origin(base)}.initial_state" or getattr(node.state_fallback, "__self__", None) is not module:
        raise refused(
            path, module, "it starts from a state of one's own", f"leave the state_fallback of {base.__name__}"
        )
    return read_cell(path, module, node)


def read_cell(path: str, module: nn.Module, node: _NorseModule) -> Neuron:
    """A neuron with one state, or with a second that is 0 again after one step.

    Source: norse 1.1; v = v + dt * tau_mem_inv * (v_leak - v + x), fires where v > v_th; IAF has v = v + x.
    """
    state_name = _STEPS[origin(node.activation)]
    readings = Readings(path)
    if getattr(node, "record_states", False):
        raise refused(path, module, "record_states=True returns the states of all steps", "record_states=False")
    current = state_name in ("LIState", "LIFFeedForwardState")
    if current:
        _check_current(readings, module, node)
    op = _li(readings, node) if state_name in ("LIState", "LIBoxState") else _lif(readings, node, state_name)
    timed = any(origin(cls) == f"{MODULES}snn.SNN" for cls in type(module).__mro__)
    state = getattr(sys.modules[getattr(node.activation, "__module__", "")], state_name)
    return Neuron(
        op=op,
        expects=Expects.SEPARATE if timed else Expects.STEP,
        arrays=tuple(readings.arrays.items()),
        step=StateCall(path, state, current),
        channel_axes=readings.channel_axes,
        read=tuple(readings.read),
        assumed=tuple(readings.assumed),
    )


def _check_current(readings: Readings, module: nn.Module, node: _NorseModule) -> None:
    """The synaptic current is multiplied by 1 - dt * tau_syn_inv from step to step."""
    leak = _of_a_step(readings.value("tau_syn_inv", node.p.tau_syn_inv), readings.value("dt", node.dt))
    if not bool((leak == 1.0).all()):
        kept = 1.0 - float(leak.flatten()[0])
        reason = f"two states: a synaptic current keeps {kept:g} of itself from step to step"
        raise refused(readings.path, module, reason, HINT)
    readings.read.append("tau_syn_inv * dt 1: no synaptic current is left after a step")


def _of_a_step(inverse: Tensor, step: Tensor) -> Tensor:
    """dt * inverse, in 32 bits where the inverse is a tensor of norse and not a number of Python."""
    return step * inverse if inverse.dtype == torch.float64 else step.float() * inverse


def _leak(readings: Readings, node: _NorseModule) -> Tensor:
    """dt * tau_mem_inv."""
    inverse, step = readings.value("tau_mem_inv", node.p.tau_mem_inv), readings.value("dt", node.dt)
    readings.say("tau_mem_inv", inverse)
    readings.say("dt", step)
    leak = _of_a_step(inverse, step)
    if not bool(((leak >= 0.0) & (leak <= 1.0)).all()):
        hint = "tau_mem_inv is in 1 / s, dt in s"
        raise readings.fail(f"dt * tau_mem_inv is {float(leak.flatten()[0]):g}, not inside [0, 1]", hint)
    form = "v + dt * tau_mem_inv * (v_leak - v + x)"
    readings.assumed.append(
        f"{form} is computed as decay * v + input_scale * x + leak_bias: the last bits may round otherwise"
    )
    return leak if leak.ndim else leak.double()


def _li(readings: Readings, node: _NorseModule) -> Li:
    leak, rest = _leak(readings, node), readings.value("v_leak", node.p.v_leak)
    readings.say("v_leak", rest)
    return Li(
        decay=readings.number("decay", 1.0 - leak),
        input_scale=readings.number("input_scale", leak),
        leak_bias=readings.number("leak_bias", leak * rest),
        initial=readings.number("initial", rest),
    )


def _lif(readings: Readings, node: _NorseModule, state_name: str) -> Lif:
    one = torch.ones((), dtype=torch.float64)
    threshold, to = readings.value("v_th", node.p.v_th), readings.value("v_reset", node.p.v_reset)
    if state_name == "IAFFeedForwardState":
        leak, scale, rest, bias = torch.zeros_like(one), one, to, torch.zeros_like(one)
    else:
        leak, rest = _leak(readings, node), readings.value("v_leak", node.p.v_leak)
        scale, bias = leak, leak * rest
        readings.say("v_leak", rest)
    reset = _reset(readings, node) if state_name == "LIFBoxFeedForwardState" else Reset.HARD
    readings.say("v_th", threshold)
    if reset is Reset.HARD:
        readings.say("hard reset to", to)
    else:
        readings.read.append("soft reset")
    return Lif(
        decay=readings.number("decay", 1.0 - leak),
        threshold=readings.number("threshold", threshold),
        input_scale=readings.number("input_scale", scale),
        leak_bias=readings.number("leak_bias", bias),
        reset=reset,
        reset_value=readings.number("reset_value", to) if reset is Reset.HARD else 0.0,
        compare=Compare.GT,
        initial=readings.number("initial", rest),
        surrogate=_surrogate(readings, node),
    )


def _reset(readings: Readings, node: _NorseModule) -> Reset:
    match origin(node.p.reset_method):
        case "norse.torch.functional.reset.reset_value":
            return Reset.HARD
        case "norse.torch.functional.reset.reset_subtract":
            return Reset.SOFT
        case other:
            raise readings.fail(f"reset_method {other} is not supported", "reset_value and reset_subtract are")


def _surrogate(readings: Readings, node: _NorseModule) -> Surrogate:
    """Source: the backward functions of norse 1.1's threshold module; "super" has no alpha in it."""
    method = node.p.method
    alpha = float(readings.value("alpha", node.p.alpha))
    match method:
        case "super":
            surrogate = Surrogate(kind=SurrogateKind.SUPERSPIKE, width=1.0, scale=1.0)
        case "triangle":
            surrogate = Surrogate(kind=SurrogateKind.TRIANGLE, width=1.0, scale=alpha)
        case "tanh" if alpha > 0.0:
            surrogate = Surrogate(kind=SurrogateKind.SIGMOID, width=0.5 / alpha, scale=1.0)
        case "heaviside":
            surrogate = Surrogate(kind=SurrogateKind.RECTANGLE, scale=0.0)
        case _:
            hint = "supported: super, triangle, tanh, heaviside"
            raise readings.fail(f"surrogate {method} with alpha {alpha:g} is not supported", hint)
    readings.say_surrogate(method, surrogate)
    return surrogate
