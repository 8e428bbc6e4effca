"""What a sample costs: the launches of a program between two updates, simulated and added up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hwmodel.program import Phase, Program
from hwmodel.timing.tiles import TileSource
from runtime.timing.energy import phase_energy
from runtime.timing.simulate import Kept, PhaseTiming, simulate


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """Time and energy of one machine for a batch (an inference: a sub-batch). Units: cycles, J of all `samples`."""

    phases: Mapping[Phase, PhaseTiming]
    cycles: float
    energy_j: float
    samples: int

    @property
    def cycles_per_sample(self) -> float:
        """Cycles of a machine for each of its samples."""
        return self.cycles / self.samples

    @property
    def joules_per_sample(self) -> float:
        """Dynamic energy and leakage, external memory left out."""
        return self.energy_j / self.samples


def launches(program: Program) -> dict[Phase, int]:
    """How often a machine launches each phase between two updates of the weights.

    FORWARD of the first sub-batch of its share, OVERLAP for each other one, BACKWARD of the last one, one UPDATE.
    Source: figure 3.9.
    """
    training = program.training
    if training is None:
        return {Phase.RUN: 1}
    share = -(-training.batch_group // training.machines)
    return {Phase.FORWARD: 1, Phase.OVERLAP: share - 1, Phase.BACKWARD: 1, Phase.UPDATE: 1}


def step_cost(program: Program, tiles: TileSource | None = None, kept: Kept | None = None) -> StepCost:
    """The launches of a batch; gradients dense unless `tiles` knows of zeros, membranes whole unless `kept` does."""
    phases: dict[Phase, PhaseTiming] = {}
    cycles = energy_j = 0.0
    counts = launches(program)
    for phase, count in counts.items():
        if not count:
            continue
        timing = simulate(program, phase, tiles=tiles, kept=kept)
        phases[phase] = timing
        cycles += count * timing.elapsed_cycles
        energy_j += count * phase_energy(timing, program.config).total_j
    sub_batches = counts.get(Phase.OVERLAP, 0) + 1
    return StepCost(phases=phases, cycles=cycles, energy_j=energy_j, samples=program.batch * sub_batches)
