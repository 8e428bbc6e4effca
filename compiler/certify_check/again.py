"""Decides again what an exact solver decided: by formulas of the checker's own, and mostly another solver."""

from __future__ import annotations

import time

import numpy as np

from compiler.certify_check.content import Fault
from compiler.certify_check.layers import OverTime
from compiler.certify_check.ranges import Knowledge
from compiler.certify_check.replay import F32, scores_of
from compiler.certify_check.rounding import MANTISSA
from compiler.certify_check.solvers import Solution, Undecided, solution
from compiler.certify_check.unrolled import Unrolled
from compiler.ir import Reading


def solved_again(known: Knowledge, label: int, arithmetic: str, seconds: float) -> str | None:
    """How it was decided again that the label is alone highest on every input; None: not within the limit.

    Formulas hold of real numbers: of what integers compute exactly, and of f32 where it rounds nothing.

    known: walked, on the set.
    Raises: Fault if it is not so, or is about f32 that rounds; CompileError for a batch norm, and where no solver is
        installed.
    """
    ends = time.perf_counter() + seconds
    if arithmetic == F32 and rounds_in_f32(known):
        raise Fault("it is about f32, which rounds where an exact solver does not")
    try:
        unrolled = Unrolled(known, ends)
        if not unrolled.demand_a_rival(label):
            return "decided again by intervals alone: no input defeats the label"
        found, solver = solution(unrolled.formulas, ends)
    except Undecided:
        return None
    if found is None:
        return f"solved again by {solver} from other formulas: no input defeats the label"
    _check_example(unrolled, found, label, arithmetic)
    raise Fault("solved again, there is an input on which the label is not alone highest")


def rounds_in_f32(known: Knowledge) -> bool:
    """Whether f32 may lose something on the way to the order of the scores.

    A mean over time at the end is one division of an exact sum: sums of up to 2^23 units stay apart, in their order.
    """
    output, layer = known.graph.output, known.layers[known.graph.output]
    lost = [value.lost for name, value in known.values.items() if name != output]
    lost += [part for cells in known.cells.values() for cell in cells for part in (cell.lost, cell.lost_reset)]
    if isinstance(layer, OverTime) and layer.kind is Reading.RATE:
        source = known.values[known.graph.node(output).inputs[0]]
        sums = source.size.sum(0)
        if source.grid is None or np.any(sums > 2.0 ** (MANTISSA - 1 - source.grid)):
            return True
    else:
        lost.append(known.values[output].lost)
    return any(bool(part.any()) for part in lost)


def _check_example(unrolled: Unrolled, found: Solution, label: int, arithmetic: str) -> None:
    """A solution is an input that the network fails on, or the formulas are not the network's."""
    own = unrolled.known.inputs
    example = own.clean.copy()
    for place, name in unrolled.bits.items():
        example[place] = found[name]
    graph = unrolled.known.graph
    kind = graph.types[graph.input.name]
    shaped = example.astype(np.float32).reshape([kind.size(axis) for axis in kind.axes if axis != "N"])
    scores = scores_of(graph, shaped, arithmetic)
    if not own.contains(shaped) or (np.delete(scores, label) < scores[label]).all():
        raise AssertionError("the solver's counterexample is none in the network")
