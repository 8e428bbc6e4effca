"""Input sets as constraints over Boolean input bits; one rule for each set."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from compiler.certify.input_sets import Box, Chain, InputSet, L0Ball, Retiming
from compiler.ir import CompileError, Loc

if TYPE_CHECKING:
    from ortools.sat.python import cp_model


@dataclass(frozen=True, slots=True, kw_only=True)
class Bits:
    """Free input bits by their flat position; every other bit is as in the clean input."""

    model: cp_model.CpModel
    at: dict[int, cp_model.IntVar]

    def flipped(self, clean: int, position: int) -> cp_model.LinearExprT:
        """1 if a free bit is not as it was."""
        return 1 - self.at[position] if clean else self.at[position]


@singledispatch
def constrain(inputs: InputSet, bits: Bits) -> None:
    """Keep the free bits to the members of the set.

    Raises: CompileError for a set without a rule, such as one of real inputs.
    """
    raise CompileError(
        f"no exact verdicts over {type(inputs).__name__}",
        Loc("input set"),
        hint="exact verdicts need a set of spikes: Box, L0Ball, Chain or Retiming",
    )


@constrain.register
def _(inputs: Box, bits: Bits) -> None:
    pass  # the free bits are the set


@constrain.register
def _(inputs: L0Ball, bits: Bits) -> None:
    clean = inputs.clean.reshape(-1).astype(int).tolist()
    step = inputs.clean[0].size
    groups = [0] * len(clean) if not inputs.per_step else [position // step for position in range(len(clean))]
    for group in sorted(set(groups)):
        flips = [bits.flipped(clean[position], position) for position in bits.at if groups[position] == group]
        bits.model.add(sum(flips) <= inputs.k)


@constrain.register
def _(inputs: Chain, bits: Bits) -> None:
    draws = inputs.draws.reshape(len(inputs.draws), -1)
    pixels = draws.shape[1]
    for pixel in sorted({position % pixels for position in bits.at}):
        steps = [int(t) for t in np.argsort(draws[:, pixel], kind="stable") if int(t) * pixels + pixel in bits.at]
        for early, late in pairwise(steps):
            first, second = bits.at[early * pixels + pixel], bits.at[late * pixels + pixel]
            bits.model.add_implication(second, first)
            if draws[early, pixel] == draws[late, pixel]:
                bits.model.add_implication(first, second)


@constrain.register
def _(inputs: Retiming, bits: Bits) -> None:
    clean = inputs.clean.reshape(-1).astype(int).tolist()
    trains = inputs.clean[0].size
    for train in sorted({position % trains for position in bits.at}):
        own = [position for position in bits.at if position % trains == train]
        bits.model.add(sum(bits.at[position] for position in own) == sum(clean[position] for position in own))
    bits.model.add(sum(1 - handle for position, handle in bits.at.items() if clean[position]) <= inputs.moved)
