"""Neuron nodes of NIR as ops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TypeVar

import numpy as np

from compiler.ir import Compare, CompileError, Loc, Number, Param, Reset, Surrogate, SurrogateKind
from compiler.ir.ops import Array, Li, Lif
from frontends.nir_file.nodes import Field, NirNode
from frontends.nir_import.dynamics import Dynamics, leaky, perfect
from frontends.nir_import.numbers import Float64, numbers
from frontends.nir_import.reading import Reading
from frontends.nir_import.writer import Writer

E = TypeVar("E", bound=StrEnum)

NEURONS = ("LIF", "IF", "LI", "I", "Threshold")


@dataclass(frozen=True, slots=True)
class ReadNeuron:
    """The op, the arrays that it refers to, and what it says in words."""

    op: Lif | Li
    arrays: Mapping[str, Array]
    text: str


@dataclass(slots=True)
class _Numbers:
    """Turns per-channel values into numbers of an op; arrays are collected under the node's name."""

    name: str
    arrays: dict[str, Array]

    def __call__(self, field: str, values: Float64) -> Number:
        if not values.ndim or (values == values.reshape(-1)[0]).all():
            return float(values.reshape(-1)[0]) + 0.0  # no negative zero
        param = f"{self.name}.{field}"
        self.arrays[param] = values.astype(np.float32)
        return Param(param)


def read_neuron(node: NirNode, name: str, shape: tuple[int, ...], reading: Reading, loc: Loc) -> ReadNeuron:
    """A neuron node as an op.

    shape: of its value without samples and time, channels first.
    Raises: CompileError for parameters that no op has.
    """
    arrays: dict[str, Array] = {}
    number = _Numbers(name, arrays)

    def read(field: str) -> Float64:
        return numbers(node, field, shape, loc).astype(np.float64)

    if node.kind == "Threshold":
        op: Lif | Li = _fires(
            node, number, read("threshold"), Dynamics(np.zeros(()), np.ones(()), np.ones(())), reading, loc
        )
        return ReadNeuron(op, arrays, _words(op))
    r = numbers(node, "r", shape, loc)
    leak = read("v_leak") if node.kind in ("LIF", "LI") else np.zeros(())
    dynamics = (
        leaky(numbers(node, "tau", shape, loc), r, reading, loc)
        if node.kind in ("LIF", "LI")
        else perfect(r, reading, loc)
    )
    if node.kind in ("LI", "I"):
        op = Li(
            decay=number("decay", dynamics.decay),
            input_scale=number("input_scale", dynamics.gain),
            leak_bias=number("leak_bias", dynamics.leak * leak),
            initial=number("initial", leak if reading.writer is Writer.NORSE else _initial(node, shape, loc)),
        )
        return ReadNeuron(op, arrays, _words(op))
    reset = read("v_reset") if "v_reset" in node.fields else np.zeros(())
    initial = {Writer.SPIKINGJELLY: reset, Writer.NORSE: leak}.get(reading.writer)
    if initial is None:
        initial = _initial(node, shape, loc)
    op = _fires(node, number, read("v_threshold"), dynamics, reading, loc, leak=leak, reset=reset, initial=initial)
    return ReadNeuron(op, arrays, _words(op))


def _fires(
    node: NirNode,
    number: _Numbers,
    threshold: Float64,
    dynamics: Dynamics,
    reading: Reading,
    loc: Loc,
    *,
    leak: Float64 | None = None,
    reset: Float64 | None = None,
    initial: Float64 | None = None,
) -> Lif:
    """The op of a population that fires; its metadata, where it has any, state what NIR has no field for."""
    zero = np.zeros(())
    kind = _choice(node, "reset", Reset, reading.reset, loc)
    return Lif(
        decay=number("decay", dynamics.decay),
        threshold=number("threshold", threshold),
        input_scale=number("input_scale", dynamics.gain),
        leak_bias=number("leak_bias", dynamics.leak * (zero if leak is None else leak)),
        reset=kind,
        reset_value=number("reset_value", reset) if kind is Reset.HARD and reset is not None else 0.0,
        reset_delay=_flag(node, "reset_delay", reading.reset_delay) and kind is Reset.SOFT,
        compare=_choice(node, "compare", Compare, reading.compare, loc),
        detach_reset=_flag(node, "detach_reset", reading.detach_reset),
        initial=number("initial", zero if initial is None else initial),
        surrogate=_surrogate(node, loc),
    )


def _initial(node: NirNode, shape: tuple[int, ...], loc: Loc) -> Float64:
    if "initial" not in node.metadata:
        return np.zeros(())
    return numbers(NirNode(kind=node.kind, fields=node.metadata), "initial", shape, loc).astype(np.float64)


def _choice(node: NirNode, key: str, kind: type[E], default: E, loc: Loc) -> E:
    value = node.metadata.get(key)
    if value is None:
        return default
    if not isinstance(value, str) or value not in set(kind):
        raise CompileError(f"its metadata's {key} is {value!r:.40}", loc, hint=f"it is one of {', '.join(kind)}")
    return kind(value)


def _flag(node: NirNode, key: str, default: bool) -> bool:
    value = node.metadata.get(key)
    return bool(value.reshape(-1)[0]) if isinstance(value, np.ndarray) and value.size == 1 else default


def _surrogate(node: NirNode, loc: Loc) -> Surrogate:
    if "surrogate" not in node.metadata:
        return Surrogate()
    kind = _choice(node, "surrogate", SurrogateKind, SurrogateKind.RECTANGLE, loc)
    stated: dict[str, float] = {}
    for field in fields(Surrogate):
        value: Field | None = node.metadata.get(f"surrogate_{field.name}")
        if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "fiu":
            stated[field.name] = float(value.reshape(-1)[0])
    return Surrogate(kind=kind, **stated)


def _words(op: Lif | Li) -> str:
    """The op's numbers for people."""

    def show(value: Number) -> str:
        return "one per channel" if isinstance(value, Param) else f"{value:g}"

    words = [f"decay {show(op.decay)}", f"input scale {show(op.input_scale)}"]
    if op.leak_bias != 0.0:
        words.append(f"leak bias {show(op.leak_bias)}")
    if isinstance(op, Lif):
        words.append(f"threshold {show(op.threshold)}")
        kind = f"{op.reset} reset" + (f" to {show(op.reset_value)}" if op.reset is Reset.HARD else "")
        words.append(kind + (" one step later" if op.reset_delay else ""))
    if op.initial != 0.0:
        words.append(f"starts at {show(op.initial)}")
    return ", ".join(words)
