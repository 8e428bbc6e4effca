"""Neurons written out in operators: the steps of a loop become calls of one population.

A comparison of a value with a constant is a spike, the value its membrane potential m. Everything elementwise is a
polynomial over m and the spikes s of earlier steps and over what other layers give, x; where

    m[t] = a * m[t-1] + b * x[t] + c + d * s[t-1] + e * m[t-1] * s[t-1]

holds at each step with the same numbers, and these are the numbers of a Lif, the steps are replaced by it, after the
loop and the op have been executed side by side. A sum with decay that nothing is compared with is a Li.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from compiler.ir import CompileError, Surrogate
from frontends.torch_import.recurrence.leaky import fold_integrators
from frontends.torch_import.recurrence.match import Chain, chains
from frontends.torch_import.recurrence.reading import Comparison, Equations, Reader
from frontends.torch_import.recurrence.spiking import fold_populations
from frontends.torch_import.trace import Trace

_Pick = Callable[[Sequence[int]], int]


def fold_recurrences(traced: Trace, timesteps: int, surrogate: Surrogate | None = None) -> Trace:
    """The trace with each neuron that is written out in operators as one neuron that does a step a call.

    surrogate: what a trace does not show; None: a rectangle of width 0.5, and a finding that says so.
    Raises: CompileError with the equation found, for a loop whose spikes follow no Lif, or whose spikes differ from
    its spikes by rounding.
    """
    reader = Reader(traced)
    comparisons = reader.comparisons()
    folded = _spiking(reader, comparisons, timesteps, surrogate) if comparisons else traced
    return fold_integrators(folded, timesteps)


def _spiking(reader: Reader, comparisons: Sequence[Comparison], timesteps: int, surrogate: Surrogate | None) -> Trace:
    """Raises: the first error, if no choice of membrane potentials gives equations of neurons."""
    faults = []
    picks: tuple[_Pick, ...] = (min, max)
    for pick in picks:
        try:
            equations, found = _chains(reader, comparisons, pick)
            return fold_populations(reader, equations, found, timesteps, surrogate)
        except CompileError as fault:
            faults.append(fault)
    raise faults[0]


def _chains(reader: Reader, comparisons: Sequence[Comparison], pick: _Pick) -> tuple[Equations, list[Chain]]:
    """The populations, with the outermost or innermost value of each path that later steps use as the membrane."""
    used = [reader.place(comparison, pick) for comparison in comparisons]
    places = [
        reader.computed(comparison) if place is None else place
        for place, comparison in zip(used, comparisons, strict=True)
    ]
    equations = reader.equations(comparisons, places)
    found = chains(equations)
    # Nothing goes on from the last step: its membrane potential is taken where that of the step before is.
    index = {comparison.call.node: number for number, comparison in enumerate(comparisons)}
    moved = list(places)
    for chain in found:
        if len(chain.steps) > 1:
            before, last = (index[step.facts.call.node] for step in chain.steps[-2:])
            if used[last] is None:
                moved[last] = min(places[before], len(comparisons[last].path) - 1)
    if moved == places:
        return equations, found
    equations = reader.equations(comparisons, moved)
    return equations, chains(equations)
