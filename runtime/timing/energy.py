"""Energy of a simulated launch: what its engines did, what DMA moved on chip, and leakage over its time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from hwmodel.area import buffer_engine
from hwmodel.config import H2LearnConfig
from hwmodel.energy import NO_ENERGY, Energy, EngineEnergy, run_energy, transfer_energy, work_energy
from hwmodel.isa import Buffer, Queue
from runtime.timing.simulate import Moved, PhaseTiming


def phase_energy(timing: PhaseTiming, config: H2LearnConfig, layer: int | None = None) -> Energy:
    """Dynamic energy of one launch and the leakage of all engines over its elapsed time.

    Of one `layer` alone the dynamic energy, without leakage: layers overlap. Off-chip memory is not counted.
    """
    dynamic: dict[Queue, EngineEnergy] = defaultdict(lambda: NO_ENERGY)
    for (queue, number), work in timing.work.items():
        if queue is not Queue.HOST and layer in (None, number):
            dynamic[queue] += work_energy(work, config, queue)
    for engine, spent in _moved(timing.bytes, config, layer).items():
        dynamic[engine] += spent
    return run_energy(dynamic, timing.elapsed_cycles if layer is None else 0.0, config)


def _moved(moved: Mapping[Moved, float], config: H2LearnConfig, layer: int | None) -> dict[Queue, EngineEnergy]:
    found: dict[Queue, EngineEnergy] = defaultdict(lambda: NO_ENERGY)
    for way, count in moved.items():
        if layer in (None, way.layer):
            buffer = Buffer(way.buffer)
            found[buffer_engine(buffer)] += transfer_energy(count, buffer, config, store=way.stored)
    return found
