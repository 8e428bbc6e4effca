"""Rounds a network to a dyadic grid, so that integers, and mostly f32 too, compute it exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from compiler.ir import CompileError, Graph, Node, Number, Param
from compiler.ir.ops import Array, Conv2d, Li, Lif, Linear, Op, Scale
from compiler.passes.fold_batch_norm import FoldBatchNorm
from compiler.passes.mean_last import MeanLast

MOST_BITS = 16
FIELDS = ("weight", "bias", "factor", "decay", "threshold", "input_scale", "leak_bias", "reset_value", "initial")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """What rounding changed about one number or array of a node."""

    node: str
    what: str
    largest_change: float  # in the number's own unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
    """A network on a dyadic grid, and what it cost: every number that changed."""

    graph: Graph
    changes: tuple[Rounding, ...]


def quantise_dyadic(graph: Graph, *, fraction_bits: int = 6, decay_bits: int = 2) -> Quantised:
    """Round weights, biases, thresholds and all other numbers to multiples of 2**-fraction_bits, decays coarser.

    Batch norms are folded first and a mean over time moves behind the linear layers after it; the decay gets a grid
    of its own, since each of its bits makes potentials finer at every step: after t steps their unit is
    2**-(fraction_bits + t * decay_bits). A number that is on the grid stays as it is. Rounding is to the nearest,
    halves to even.

    Raises: CompileError for bits outside 0 .. 16, and for a batch norm that cannot be folded.
    """
    for what, bits in (("fraction_bits", fraction_bits), ("decay_bits", decay_bits)):
        if not 0 <= bits <= MOST_BITS:
            raise CompileError(f"{what} is {bits}, not inside 0 .. {MOST_BITS}", graph.input.loc)
    folded = MeanLast()(FoldBatchNorm()(graph))
    arrays: dict[str, Array] = {}
    changes: list[Rounding] = []
    nodes = []
    for node in folded.nodes:
        op, new, changed = _rounded(folded, node, fraction_bits, decay_bits)
        nodes.append(replace(node, op=op))
        arrays |= new
        changes += changed
    return Quantised(graph=folded.with_nodes(tuple(nodes), parameters=arrays), changes=tuple(changes))


def _rounded(
    graph: Graph, node: Node, fraction_bits: int, decay_bits: int
) -> tuple[Op, dict[str, Array], list[Rounding]]:
    """The op with its numbers on the grid; arrays under names of their own, since others may share the old ones."""
    op = node.op
    if not isinstance(op, Conv2d | Linear | Scale | Lif | Li):
        return op, {}, []
    arrays: dict[str, Array] = {}
    changes = []
    for what in FIELDS:
        value: Number | None = getattr(op, what, None)
        if value is None:
            continue
        bits = decay_bits if what == "decay" else fraction_bits
        exact = graph.parameters[value.name] if isinstance(value, Param) else np.array(value, np.float32)
        rounded = _on_grid(exact, bits)
        change = float(np.abs(rounded.astype(np.float64) - exact).max())
        if change == 0.0:
            continue
        changes.append(Rounding(node=node.name, what=what, largest_change=change))
        if isinstance(value, Param):
            name = f"{node.name}.dyadic_{what}"
            arrays[name] = rounded
            op = replace(op, **{what: Param(name)})  # type: ignore[arg-type]  # a field of the op that holds a number
        else:
            op = replace(op, **{what: float(rounded)})  # type: ignore[arg-type]
    return op, arrays, changes


def _on_grid(values: npt.NDArray[np.float32], bits: int) -> npt.NDArray[np.float32]:
    return (np.rint(values.astype(np.float64) * 2.0**bits) / 2.0**bits).astype(np.float32)
