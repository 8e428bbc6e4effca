"""One call of the Grad unit: its arguments for a tile, which can be cut to the steps behind a given one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from hwmodel.isa import Grad
from runtime.engines import F16, U8, Engines, GradPlan, GradResult, KeptStage

Array = TypeVar("Array", F16, U8)


@dataclass(frozen=True, slots=True, kw_only=True)
class GradCall:
    """The arguments of the Grad unit for a tile."""

    psum: F16
    plan: GradPlan
    params: F16
    kept: tuple[KeptStage, ...]
    carry: tuple[F16 | None, ...]
    winners: U8 | None
    height: int
    width: int

    def run(self, engines: Engines, first: int) -> GradResult:
        """Backwards from the last step to step `first` of the chunk."""
        kept = tuple(
            KeptStage(
                spikes=None if k.spikes is None else k.spikes[first:],
                mask=None if k.mask is None else k.mask[first:],
                membrane=None if k.membrane is None else k.membrane[first:],
            )
            for k in self.kept
        )
        winners = None if self.winners is None else self.winners[first:]
        psum = self.psum[first:]
        return engines.grad(psum, self.plan, self.params, kept, self.carry, winners, self.height, self.width)


def over_time(values: Array, grad: Grad) -> Array:
    """Time and sample apart. Shapes: (nt * nn or (nt, nn), h, w, c) -> (nt, nn, h, w, c)."""
    return values.reshape(grad.nt, grad.nn, *values.shape[-3:])
