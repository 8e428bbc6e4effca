"""What an instruction does, in units that can be counted: cycles of its engine, operations, look-ups, bytes on chip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from hwmodel.isa import Buffer

F16_BYTES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Counts of one instruction or of many; they add up.

    Units: `cycles` of the engine that runs it; operations and look-ups are single FP16 ones, of one lane; `read` and
    `written` are bytes that the engine moves between its PEs and a buffer (what DMA moves is counted apart).
    """

    cycles: float = 0
    adds: float = 0  # FP16 adders of the PEs, their tree and the accumulators
    multiplies: float = 0
    look_ups: float = 0  # reads of a sub-LUT
    lut_writes: float = 0  # entries programmed
    outputs_found: float = 0  # output IDs that the Effectual O Finder hands out
    macs: float = 0  # of the Backward Engine: valid pairs of input and output
    soma_steps: float = 0  # neurons times steps, forwards or backwards
    read: Mapping[Buffer, float] = field(default_factory=dict)
    written: Mapping[Buffer, float] = field(default_factory=dict)

    def __add__(self, other: Work) -> Work:
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.name not in _BYTES}
        return Work(**sums, read=_merged(self.read, other.read), written=_merged(self.written, other.written))

    def times(self, factor: float) -> Work:
        """The same work, so many times."""
        scaled = {f.name: getattr(self, f.name) * factor for f in fields(self) if f.name not in _BYTES}
        return Work(
            **scaled,
            read={buffer: count * factor for buffer, count in self.read.items()},
            written={buffer: count * factor for buffer, count in self.written.items()},
        )


_BYTES = {"read", "written"}


def _merged(first: Mapping[Buffer, float], second: Mapping[Buffer, float]) -> dict[Buffer, float]:
    return {key: first.get(key, 0) + second.get(key, 0) for key in {*first, *second}}
