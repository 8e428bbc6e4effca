"""Loads and stores of one layer, as actions in program order."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.h2learn.synchronise import Action, Resource
from hwmodel.isa import Buffer, Load, Part, Queue, Store

Range = tuple[int, int]  # start and size


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A box of a tensor: start and size along each axis; what is left out is the first element."""

    tensor: int
    t: Range = (0, 1)
    n: Range = (0, 1)
    y: Range = (0, 1)
    x: Range = (0, 1)
    c: Range
    flat: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Mover:
    """The DMA of one memory at work for a layer."""

    layer: int
    queue: Queue

    def load(
        self, buffer: Buffer, bank: int, region: Region, part: int = Part.RESULT, after: tuple[Resource, ...] = ()
    ) -> Action:
        """A region to a part of a bank; `after` is what else it reads, as a tensor that another queue writes."""
        instruction = Load(buffer=buffer, bank=bank, part=part, flat=region.flat, **self._box(region))
        return Action(queue=self.queue, instruction=instruction, reads=after, writes=((buffer, bank),))

    def store(
        self,
        buffer: Buffer,
        bank: int,
        region: Region,
        part: int = Part.RESULT,
        mask: Buffer | None = None,
    ) -> Action:
        """A part of a bank to a region; `mask` is the buffer whose mask packs membrane potentials."""
        instruction = Store(buffer=buffer, bank=bank, part=part, flat=False, **self._box(region))
        reads: tuple[Resource, ...] = ((buffer, bank),) if mask is None else ((buffer, bank), (mask, bank))
        return Action(queue=self.queue, instruction=instruction, reads=reads)

    def _box(self, region: Region) -> dict[str, int]:
        return {
            "layer": self.layer,
            "tensor": region.tensor,
            "t0": region.t[0],
            "nt": region.t[1],
            "n0": region.n[0],
            "nn": region.n[1],
            "y0": region.y[0],
            "h": region.y[1],
            "x0": region.x[0],
            "w": region.x[1],
            "c0": region.c[0],
            "nc": region.c[1],
        }
