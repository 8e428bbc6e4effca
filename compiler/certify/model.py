"""Bounds of a network's values over a set of inputs, for every node, step and sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compiler.certify.arithmetic import grid_of
from compiler.certify.input_sets import InputSet, L0Ball
from compiler.ir import CompileError, DType, Graph


@dataclass(frozen=True, slots=True, kw_only=True)
class FewFlips:
    """A value of which at each step only so many elements differ from the clean one, taking their other bound then.

    Shapes: clean as the value, most (N,).
    """

    clean: Tensor
    most: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """lower <= value <= upper, for the value that `evaluate` computes of any input of the set.

    error: how far that value may be from the op's result in real numbers on the values that the op gets: what
    rounding adds in this op alone. grid: all values are multiples of 2^-grid; None: unknown.

    Shapes: lower and upper f64, as the value; error broadcasts to it.
    """

    lower: Tensor
    upper: Tensor
    error: Tensor
    grid: int | None = None
    flips: FewFlips | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """Neurons: membrane potentials when they are compared with the threshold, and what is left of them after a reset.

    membrane: m[t]; its error is that of m[t] as a function of v[t-1] and x[t] (and s[t-1], of a delayed reset).
    after: v[t]; its error is that of the reset, by the rounding of m[t] - threshold.
    fires, silent: neurons that do so at that step whatever the input; all others are unstable.

    Shapes: as the spikes, (T, N, ...).
    """

    membrane: Interval
    after: Interval
    fires: Tensor
    silent: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Bounds of a network's values: of each node, and of the populations of neurons (Lif) by name."""

    nodes: Mapping[str, Interval]
    populations: Mapping[str, Population]

    @property
    def unstable(self) -> int:
        """How many spikes depend on the input, of all neurons, steps and samples."""
        return sum(int((~(p.fires | p.silent)).sum()) for p in self.populations.values())


def exactly(value: Tensor, grid: int | None = None) -> Interval:
    """One known value."""
    return Interval(lower=value, upper=value, error=torch.zeros((), dtype=torch.float64), grid=grid)


def check_set(graph: Graph, inputs: InputSet) -> None:
    """Raises: CompileError if a set is not one of inputs that the network takes."""
    node = graph.input
    kind = graph.types[node.name]
    want = tuple(size for size, axis in zip(kind.shape, kind.axes, strict=True) if axis != "N")
    if inputs.shape != want:
        raise CompileError(f"{node.name}: an input set is {inputs.shape}, one sample of the network {want}", node.loc)
    if kind.dtype is DType.SPIKE and not inputs.is_binary:
        raise CompileError(f"{node.name}: takes spikes, the input set has real values", node.loc)
    if isinstance(inputs, L0Ball) and inputs.per_step and not kind.has("T"):
        raise CompileError(
            f"{node.name}: a budget of flips for each step, and the input has no steps",
            node.loc,
            hint="give one budget for all of it: per_step=False",
        )


def stacked(graph: Graph, sets: Sequence[InputSet]) -> Interval:
    """The input's bounds: one sample for each set.

    Shapes: (T, N, ...) or (N, ...), as the graph's input.
    Raises: CompileError if there is no set, or one that does not fit the input.
    """
    node = graph.input
    kind = graph.types[node.name]
    if not sets:
        raise CompileError(f"{node.name}: no input set is given", node.loc)
    for one in sets:
        check_set(graph, one)
    axis = kind.axes.index("N")
    clean, lower, upper = (
        torch.from_numpy(np.stack([np.asarray(getattr(one, side), np.float64) for one in sets], axis))
        for side in ("clean", "lower", "upper")
    )
    is_binary = all(one.is_binary for one in sets)
    is_point = bool((lower == upper).all())
    return Interval(
        lower=lower,
        upper=upper,
        error=torch.zeros((), dtype=torch.float64),
        grid=grid_of(clean.numpy()) if is_binary or is_point else None,
        flips=_few_flips(sets, clean) if is_binary else None,
    )


def _few_flips(sets: Sequence[InputSet], clean: Tensor) -> FewFlips | None:
    """The sets' budgets for single steps, where one has any."""
    budgets = [one.step_flips for one in sets]
    if all(budget is None for budget in budgets):
        return None
    size = clean.numel()
    return FewFlips(clean=clean, most=torch.tensor([size if budget is None else budget for budget in budgets]))
