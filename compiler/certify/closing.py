"""The end of a linear form: its minimum over an input set, looking only at what the set leaves free."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from compiler.certify.input_sets import Box, Chain, InputSet, L0Ball, Retiming
from compiler.certify.transposed import Coefficients, Descent, Sparse
from compiler.ir import Graph, Node
from compiler.ir.ops import Flatten, Linear

Element = TypeVar("Element", bound=np.generic)
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """An input set as its free part and what is fixed: a position is free if it is so at any step.

    entry: the linear layer that alone reads the input, if there is one: forms of its value are closed, without those
    of all inputs.
    Shapes: fixed (T, F), 0 at the free positions, or (F,) without time; columns (O, free), base (T, O).
    """

    free: InputSet | None  # over (T, free), or the whole set; None: nothing is free
    positions: Tensor
    fixed: Tensor
    entry: str | None
    columns: Tensor
    base: Tensor

    def support(self, forms: Tensor) -> Tensor:
        """The minimum of forms of the input. Shapes: (R, T, C, ...), T the set's or less, or (R, C, ...) -> (R,)."""
        flat = forms.reshape(*forms.shape[: self.fixed.ndim], self.fixed.shape[-1])
        fixed = self.fixed[: flat.shape[1]] if self.fixed.ndim > 1 else self.fixed
        return flat.flatten(1) @ fixed.flatten() + self._free_support(flat[..., self.positions])

    def enter(self, forms: Coefficients, node: Node, run: Descent) -> Tensor:
        """The minimum of forms of the entry layer's value, and of what was shed. Shapes: (R, T, O) -> (R,)."""
        if isinstance(forms, Sparse):
            steps = forms.values.shape[1]
            offset = run.ranges.rounding[node.name][:steps, forms.unit]
            run.shed(-(forms.values.abs() * offset.T).sum(1))
            run.shed((forms.values * self.base[:steps, forms.unit].T).sum(1))
            return run.constant + self._free_support(forms.values[:, :, None] * self.columns[forms.unit][:, None])
        run.widen(forms, node.name)
        run.shed(forms * self.base[: forms.shape[1]])
        return run.constant + self._free_support(forms @ self.columns)

    def is_exact(self, node: Node, step: int) -> bool:
        """Whether S-IBP's bounds of potentials at a step cannot be bettered, the potentials' relaxations being as is.

        So it is of neurons right behind the entry layer: at the first step, whose inputs it looks at by what they may
        be in a single step, and at all steps where no input depends on another.
        """
        return node.inputs[0] == self.entry and (step == 0 or self.free is None or isinstance(self.free, Box))

    def _free_support(self, forms: Tensor) -> Tensor:
        """Shapes: (R, T, free), T the set's or less, or (R, free) -> (R,)."""
        if self.free is None:
            return forms.new_zeros(len(forms))
        missing = len(self.fixed) - forms.shape[1] if self.fixed.ndim > 1 else 0
        if missing:  # forms of early steps say nothing of later ones
            forms = torch.cat([forms, forms.new_zeros(len(forms), missing, forms.shape[2])], 1)
        return self.free.support(forms.reshape(len(forms), *self.free.shape))


def closing(graph: Graph, inputs: InputSet) -> Closing:
    """How forms of a network's values end at an input set."""
    has_time = graph.types[graph.input.name].has("T")
    shape = (len(inputs.lower), -1) if has_time else (-1,)
    lower, upper = (bounds.reshape(shape) for bounds in (inputs.lower, inputs.upper))
    is_free = (lower < upper).any(0) if has_time else lower < upper
    part: InputSet | None = None
    if is_free.any():
        part = restricted(inputs, np.flatnonzero(is_free)) if has_time else inputs
        if part is inputs:
            is_free = np.ones_like(is_free)
    positions = torch.from_numpy(np.flatnonzero(is_free))
    fixed = torch.from_numpy(np.where(is_free, 0.0, lower))
    entry = _entry(graph) if has_time else None
    columns = base = torch.zeros(0)
    if entry is not None and isinstance(entry.op, Linear):
        weight = torch.from_numpy(graph.parameters[entry.op.weight.name].astype(np.float64))
        columns, base = weight[:, positions], fixed @ weight.T
        if entry.op.bias is not None:
            base = base + torch.from_numpy(graph.parameters[entry.op.bias.name].astype(np.float64))
    return Closing(
        free=part,
        positions=positions,
        fixed=fixed,
        entry=None if entry is None else entry.name,
        columns=columns,
        base=base,
    )


@singledispatch
def restricted(inputs: InputSet, positions: Positions) -> InputSet:
    """A set of sequences over some positions, the only free ones; the whole set where no rule knows its kind.

    Shapes: positions of the flattened (C, ...) -> a set over (T, positions).
    """
    return inputs


@restricted.register
def _(inputs: Box, positions: Positions) -> InputSet:
    return Box(clean=_at(inputs.clean, positions), free=_at(inputs.free, positions))


@restricted.register
def _(inputs: L0Ball, positions: Positions) -> InputSet:
    return L0Ball(
        clean=_at(inputs.clean, positions),
        k=inputs.k,
        mask=_at(inputs.free, positions),
        flips=inputs.flips,
        per_step=inputs.per_step,
    )


@restricted.register
def _(inputs: Chain, positions: Positions) -> InputSet:
    return Chain(image=inputs.image.reshape(-1)[positions], eps=inputs.eps, draws=_at(inputs.draws, positions))


@restricted.register
def _(inputs: Retiming, positions: Positions) -> InputSet:
    return Retiming(clean=_at(inputs.clean, positions), moved=inputs.moved)


def _at(array: npt.NDArray[Element], positions: Positions) -> npt.NDArray[Element]:
    return array.reshape(len(array), -1)[:, positions]


def _entry(graph: Graph) -> Node | None:
    """The linear layer that alone reads the input, maybe flattened."""
    readers = graph.consumers(graph.input.name)
    if len(readers) == 1 and isinstance(readers[0].op, Flatten):
        readers = graph.consumers(readers[0].name)
    return readers[0] if len(readers) == 1 and isinstance(readers[0].op, Linear) else None
