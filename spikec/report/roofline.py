"""What an engine attains, beside what its array and its memories allow."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from hwmodel.area import ENGINES, adder_count, buffer_engine, multiplier_count
from hwmodel.config import H2LearnConfig
from hwmodel.isa import Buffer, Queue
from hwmodel.timing.instructions import F16_BYTES, SGD_ADDS, SGD_MULTIPLIES
from hwmodel.work import Work
from runtime.timing.simulate import PhaseTiming

ROUNDING = 0.5  # operations are whole, their sums in floating point are not quite
_STREAMED = {
    Buffer.WU_GRAD: 1,
    Buffer.BE_GRAD: 1,
    Buffer.WU_WEIGHT: SGD_ADDS + SGD_MULTIPLIES,
}  # for each element stored


@dataclass(frozen=True, slots=True, kw_only=True)
class Roof:
    """One engine in one phase.

    Units: operations are FP16 additions and multiplications of the array (the adder of weight gradients and the SGD
    unit work at the pace of memory, and are no part of it); bytes are those of the one memory that takes longest for
    this engine; seconds are the phase's.
    """

    engine: Queue
    operations: float
    memory: str
    memory_bytes: float
    seconds: float
    peak_ops_per_s: float
    bandwidth_bytes_per_s: float

    @property
    def attained_ops_per_s(self) -> float:
        """Over the whole phase, pauses included."""
        return self.operations / self.seconds if self.seconds else 0.0

    @property
    def intensity_ops_per_byte(self) -> float:
        """Operations for each byte of the memory; infinite for an engine that loads nothing."""
        return self.operations / self.memory_bytes if self.memory_bytes else math.inf

    @property
    def roof_ops_per_s(self) -> float:
        """min(peak, intensity * bandwidth)."""
        if not self.memory_bytes:
            return self.peak_ops_per_s
        return min(self.peak_ops_per_s, self.intensity_ops_per_byte * self.bandwidth_bytes_per_s)


def rooflines(timing: PhaseTiming, config: H2LearnConfig) -> tuple[Roof, ...]:
    """The engines that compute in a phase."""
    work: dict[Queue, Work] = defaultdict(Work)
    for (queue, _), done in timing.work.items():
        work[queue] += done
    streamed: dict[Queue, float] = defaultdict(float)
    moved: dict[Queue, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for way, count in timing.bytes.items():
        engine = buffer_engine(Buffer(way.buffer))
        moved[engine][way.memory] += count
        streamed[engine] += count / F16_BYTES * _STREAMED.get(Buffer(way.buffer), 0) * way.stored
    hertz = config.clock_ghz * 1e9
    roofs = []
    for engine in ENGINES:
        operations = work[engine].adds + work[engine].multiplies - streamed[engine]
        memory = max(moved[engine], key=lambda name: moved[engine][name], default="")
        if operations > ROUNDING:
            roofs.append(
                Roof(
                    engine=engine,
                    operations=operations,
                    memory=memory,
                    memory_bytes=moved[engine][memory] if memory else 0.0,
                    seconds=timing.elapsed_cycles / hertz,
                    peak_ops_per_s=peak_operations(config, engine) * hertz,
                    bandwidth_bytes_per_s=config.memory.bytes_per_cycle * hertz,
                )
            )
    return tuple(roofs)


def peak_operations(config: H2LearnConfig, engine: Queue) -> int:
    """Operations that an array starts in a cycle; a PE of the Backward Engine multiplies and adds twice, table 3.6."""
    return adder_count(config, engine) + (multiplier_count(config) if engine is Queue.BE else 0)
