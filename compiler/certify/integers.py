"""Exact execution of a network in 64-bit integers, and where f32 computes exactly the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from compiler.certify.integer_matrices import Ints
from compiler.certify.integer_network import (
    LARGEST,
    Affine,
    Given,
    IntegerNetwork,
    Maximum,
    Neurons,
    Operand,
    Reduce,
    Repeat,
    Step,
)
from compiler.ir import Reading, Reset

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Reals = npt.NDArray[np.float64]
F32_INTEGERS = 2**24  # every integer up to here is a number of f32


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """Numerators of every value and membrane potential, one array (F, N) a time step; units are the network's.

    membranes: of Lif and Li nodes, in 1 / scales of the node's `Neurons`.
    """

    values: Mapping[str, Sequence[Ints]]
    membranes: Mapping[str, Sequence[Ints]]


def execute(network: IntegerNetwork, x: npt.NDArray[np.floating] | Ints) -> Execution:
    """All values of the network on a batch, exactly.

    Shapes: x as the graph's input, N any batch.
    Raises: CompileError if x does not fit the input, is not in its units, or a numerator may overflow 64 bits.
    """
    values: dict[str, list[Ints]] = {}
    membranes: dict[str, list[Ints]] = {}
    given = _numerators(network, x)
    largest = float(max((int(np.abs(part).max(initial=0)) for part in given), default=0))
    check_magnitudes(network, largest)
    for name, step in network.steps.items():
        match step:
            case Given():
                values[name] = given
            case Neurons():
                membranes[name], spikes = _fired(step, values[step.source])
                values[name] = spikes if step.fires else membranes[name]
            case _:
                values[name] = _computed(step, values)
    return Execution(values=values, membranes=membranes)


def scores(network: IntegerNetwork, x: npt.NDArray[np.floating] | Ints) -> Ints:
    """Numerators of the class scores, all in the same unit: `network.scales` of the output.

    Shapes: x as the graph's input -> (N, K).
    Raises: CompileError as `execute`, and if the output is no scores.
    """
    kind = network.graph.types[network.graph.output]
    if kind.axes != "NC":
        node = network.graph.node(network.graph.output)
        raise network.graph.site(node).fail(f"is {kind}, not one score a class", "end the network with a readout")
    (values,) = execute(network, x).values[network.graph.output]
    return values.T


def is_alone_highest(numerators: Ints, label: int) -> npt.NDArray[np.bool_]:
    """Whether the label's score is above every other; a tie is no win.

    Shapes: (N, K) -> (N,).
    """
    others = np.delete(numerators, label, axis=1)
    return np.asarray((others < numerators[:, label : label + 1]).all(axis=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Magnitude:
    """Upper bounds of numerators' magnitudes: of a node's values, a (F,) a step, and the peak of every partial sum."""

    values: Sequence[Reals]
    peak: float


def magnitudes(network: IntegerNetwork, largest_input: float = 1.0) -> dict[str, Magnitude]:
    """Bounds by the triangle inequality, for inputs whose numerators are at most `largest_input`.

    A sum's bound is the sum of its terms' magnitudes, so it holds for any order of summation. Bounds are in f64,
    exact up to 2**53 and relatively within 2**-40 above.
    """
    bounds: dict[str, Magnitude] = {}
    for name, step in network.steps.items():
        match step:
            case Given():
                kind = network.graph.types[name]
                features = math.prod(kind.size(axis) for axis in "CHW" if kind.has(axis))
                values = [np.full(features, largest_input)] * len(network.scales[name])
                bounds[name] = Magnitude(values=values, peak=largest_input)
            case Neurons():
                bounds[name] = _neuron_magnitude(step, bounds[step.source].values)
            case Affine():
                values = [
                    sum((_term(o, t, bounds[o.source].values[t]) for o in step.operands), np.zeros(()))
                    for t in range(len(step.shifts))
                ]
                if step.bias is not None:
                    values = [v + np.abs(step.bias) * float(s) for v, s in zip(values, step.shifts, strict=True)]
                bounds[name] = Magnitude(values=values, peak=_peak(values))
            case Repeat() | Maximum() | Reduce():
                values = _moved_magnitude(step, bounds[step.source].values)
                bounds[name] = Magnitude(values=values, peak=_peak(values))
    return bounds


def check_magnitudes(network: IntegerNetwork, largest_input: float) -> None:
    """Raises: CompileError naming the node whose sums may overflow 64 bits."""
    for name, bound in magnitudes(network, largest_input).items():
        if bound.peak > LARGEST:
            raise network.graph.site(network.graph.node(name)).fail(
                f"numerators of up to {bound.peak:.3g} do not fit 64-bit integers",
                "use fewer time steps, a coarser decay or fewer fraction bits",
            )


def inexact_in_f32(network: IntegerNetwork, largest_input: float = 1.0) -> tuple[str, ...]:
    """The nodes at which `evaluate` in f32 may round; where there are none, its spikes and winner are the exact ones.

    A node is exact if its units are powers of two and no partial sum exceeds 2**24 of them. The mean over time at the
    end is a division of exact sums, rounded once: it keeps sums of up to 2**23 units apart, so ties and the order of
    the scores are exact too, and it is not listed.

    largest_input: of the input's numerators.
    """
    found = []
    for name, bound in magnitudes(network, largest_input).items():
        step = network.steps[name]
        scales = step.scales if isinstance(step, Neurons) else network.scales[name]
        limit: float = F32_INTEGERS
        if isinstance(step, Reduce) and step.kind is Reading.RATE and name == network.graph.output:
            timesteps = len(step.gains)
            scales, limit = (scales[0] // timesteps,), F32_INTEGERS / 2
        if bound.peak > limit or any(scale & (scale - 1) for scale in scales):
            found.append(name)
    return tuple(found)


def multiplications(network: IntegerNetwork) -> int:
    """How many products one sample takes."""
    return sum(
        operand.weight.nnz * len(step.shifts)
        for step in network.steps.values()
        if isinstance(step, Affine)
        for operand in step.operands
        if operand.weight is not None
    )


def _numerators(network: IntegerNetwork, x: npt.NDArray[np.floating] | Ints) -> list[Ints]:
    """The input in integers, elements first."""
    node = network.graph.input
    kind = network.graph.types[node.name]
    site = network.graph.site(node)
    fits = x.ndim == len(kind.shape) and all(
        isinstance(size, str) or size == got for size, got in zip(kind.shape, x.shape, strict=True)
    )
    if not fits:
        raise site.fail(f"input has shape {x.shape}, the network takes {kind}")
    scale = network.scales[node.name][0]
    numerators = np.asarray(x, np.float64) * scale
    if not np.array_equal(numerators, np.rint(numerators)) or np.abs(numerators).max(initial=0) > LARGEST:
        raise site.fail(f"input is no multiple of 1/{scale}", "give `lower` the input's fraction bits")
    steps = numerators.astype(np.int64) if kind.has("T") else numerators.astype(np.int64)[None]
    flat = steps.reshape(*steps.shape[:2], -1)
    return [np.ascontiguousarray(part.T) for part in flat]


def _computed(step: Step, values: Mapping[str, Sequence[Ints]]) -> list[Ints]:
    match step:
        case Repeat():
            return [values[step.source][0]] * step.timesteps
        case Affine():
            return [_affine(step, t, values) for t in range(len(step.shifts))]
        case Maximum():
            return [_maximum(step.members, x) for x in values[step.source]]
        case Reduce():
            scaled = [x * gain for x, gain in zip(values[step.source], step.gains, strict=True)]
            return [_reduced(step.kind, scaled)]
        case _:
            raise AssertionError(f"no value rule for {type(step).__name__}")


def _affine(step: Affine, t: int, values: Mapping[str, Sequence[Ints]]) -> Ints:
    total: Ints = np.zeros((1, 1), np.int64)
    for operand in step.operands:
        x = values[operand.source][t]
        total = total + (x if operand.weight is None else operand.weight @ x) * operand.gains[t]
    return total if step.bias is None else total + (step.bias * step.shifts[t])[:, None]


def _maximum(members: csr_array, x: Ints) -> Ints:
    return np.asarray(np.maximum.reduceat(x[members.indices], members.indptr[:-1], axis=0))


def _reduced(kind: Reading, values: Sequence[Ints]) -> Ints:
    match kind:
        case Reading.RATE:
            return np.asarray(np.sum(values, axis=0))
        case Reading.LAST:
            return values[-1]
        case Reading.MAX:
            return np.asarray(np.max(values, axis=0))


def _fired(step: Neurons, x: Sequence[Ints]) -> tuple[list[Ints], list[Ints]]:
    """Membrane potentials and spikes of each step."""
    v = np.broadcast_to(step.initial[:, None], x[0].shape)
    s = np.zeros_like(x[0])
    membranes, spikes = [], []
    for t, current in enumerate(x):
        m = step.decay[t][:, None] * v + step.gain[t][:, None] * current + step.bias[t][:, None]
        threshold = step.threshold[t][:, None]
        if step.delayed:
            m = m - threshold * s
        s = (m >= step.fires_from[t][:, None]).astype(np.int64) if step.fires else s
        v = m
        if step.reset is Reset.HARD:
            v = np.where(s == 1, step.reset_value[t][:, None], m)
        elif step.reset is Reset.SOFT and not step.delayed:
            v = m - threshold * s
        membranes.append(m)
        spikes.append(s)
    return membranes, spikes


def _neuron_magnitude(step: Neurons, x: Sequence[Reals]) -> Magnitude:
    v: Reals = np.abs(step.initial).astype(np.float64)
    peak, membranes = 0.0, []
    for t, current in enumerate(x):
        threshold = np.abs(step.threshold[t]).astype(np.float64)
        m = np.abs(step.decay[t]) * v + np.abs(step.gain[t]) * current + np.abs(step.bias[t])
        if step.delayed:
            m = m + threshold
        v = m
        if step.reset is Reset.HARD:
            v = np.maximum(m, np.abs(step.reset_value[t]))
        elif step.reset is Reset.SOFT and not step.delayed:
            v = m + threshold
        peak = max(peak, float(v.max()), float(threshold.max()) + 1)
        membranes.append(m)
    ones = [np.ones_like(m) for m in membranes]
    return Magnitude(values=ones if step.fires else membranes, peak=peak)


def _moved_magnitude(step: Repeat | Maximum | Reduce, x: Sequence[Reals]) -> list[Reals]:
    match step:
        case Repeat():
            return [x[0]] * step.timesteps
        case Maximum():
            members = step.members
            return [np.maximum.reduceat(part[members.indices], members.indptr[:-1]) for part in x]
        case Reduce():
            scaled = [part * float(gain) for part, gain in zip(x, step.gains, strict=True)]
            return [np.sum(scaled, axis=0) if step.kind is Reading.RATE else np.max(scaled, axis=0)]


def _term(operand: Operand, t: int, x: Reals) -> Reals:
    product = x if operand.weight is None else abs(operand.weight) @ x
    return np.asarray(product * float(operand.gains[t]))


def _peak(values: Sequence[Reals]) -> float:
    return max(float(part.max()) for part in values)
