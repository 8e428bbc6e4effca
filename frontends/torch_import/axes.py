"""Where time and batch stand in a traced tensor, followed through every reshape."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

from compiler.ir import DType
from compiler.ir.ops import Input


class Lead(Enum):
    """The axes in front of the channels."""

    IMAGE = "(N, ...) without time"
    UNSQUEEZED = "(1, N, ...), not repeated over time"
    SEPARATE = "(T, N, ...)"
    MERGED = "(T * N, ...)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extents:
    """How many time steps and samples the trace was made with."""

    timesteps: int
    samples: int

    def lead(self, lead: Lead) -> tuple[int, ...]:
        """The traced extents of the leading axes."""
        match lead:
            case Lead.IMAGE:
                return (self.samples,)
            case Lead.UNSQUEEZED:
                return (1, self.samples)
            case Lead.SEPARATE:
                return (self.timesteps, self.samples)
            case Lead.MERGED:
                return (self.timesteps * self.samples,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A traced tensor: the graph node that holds it, its leading axes, and the extents of C, C L or C H W."""

    name: str
    lead: Lead
    extents: tuple[int, ...]

    def leads(self, lead: Lead) -> Value:
        """The same value with other leading axes."""
        return replace(self, lead=lead)

    @property
    def lead_ndim(self) -> int:
        """The number of leading axes."""
        return 1 if self.lead in (Lead.IMAGE, Lead.MERGED) else 2

    @property
    def ndim(self) -> int:
        """The number of axes of the traced tensor."""
        return self.lead_ndim + len(self.extents)

    def reshaped(self, shape: tuple[int, ...], extents: Extents) -> Value | None:
        """The value after a reshape that merges or splits T and N or flattens the features, else None."""
        if self.lead in (Lead.SEPARATE, Lead.MERGED):
            others = (Lead.SEPARATE, Lead.MERGED)
        else:
            others = (Lead.IMAGE, Lead.UNSQUEEZED)
        for lead in (self.lead, *others):
            for features in (self.extents, (math.prod(self.extents),)):
                if (*extents.lead(lead), *features) == shape:
                    return replace(self, lead=lead, extents=features)
        return None

    def __str__(self) -> str:
        return f"{self.lead.value} of features {self.extents}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One reading of the example's axes."""

    lead: Lead
    extents: Extents
    features: tuple[int, ...]

    def input_op(self, binary: bool) -> Input:
        """The graph's input; a line of features gets H = 1."""
        features = (self.features[0], 1, self.features[1]) if len(self.features) == 2 else self.features
        timed = self.lead is not Lead.IMAGE
        return Input(
            shape=(*((self.extents.timesteps,) if timed else ()), "N", *features),
            dtype=DType.SPIKE if timed and binary else DType.F32,
            axes=("TN" if timed else "N") + ("C" if len(features) == 1 else "CHW"),
        )


def layouts(shape: tuple[int, ...], timesteps: int) -> tuple[Layout, ...]:
    """The readings that a shape allows: an image, time and batch separate, time and batch merged."""
    readings: list[tuple[Lead, int, tuple[int, ...]]] = []
    if len(shape) >= 2:
        readings.append((Lead.IMAGE, shape[0], shape[1:]))
    if len(shape) >= 3 and shape[0] == timesteps:
        readings.append((Lead.SEPARATE, shape[1], shape[2:]))
    if len(shape) >= 2 and shape[0] % timesteps == 0:
        readings.append((Lead.MERGED, shape[0] // timesteps, shape[1:]))
    return tuple(
        Layout(lead=lead, extents=Extents(timesteps=timesteps, samples=samples), features=features)
        for lead, samples, features in readings
        if len(features) <= 3 and 0 not in (samples, *features)
    )
