"""Where time and batch stand in a traced tensor, followed through every reshape."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

from compiler.ir import DType
from compiler.ir.ops import Input


class Lead(Enum):
    """The axes in front of the channels. Whatever they are, a sequence stands (T, N, ...) in the graph."""

    IMAGE = "(N, ...) without time"
    UNSQUEEZED = "(1, N, ...), not repeated over time"
    SEPARATE = "(T, N, ...)"
    MERGED = "(T * N, ...)"
    SAMPLES_FIRST = "(N, T, ...)"
    SAMPLES_MERGED = "(N * T, ...), samples outermost,"
    STEP = "(N, ...) of one time step"
    STEP_ROW = "(1, N, ...) of one time step"


# A reshape stays inside its group.
_GROUPS = (
    (Lead.IMAGE, Lead.UNSQUEEZED),
    (Lead.SEPARATE, Lead.MERGED),
    (Lead.SAMPLES_FIRST, Lead.SAMPLES_MERGED),
    (Lead.STEP, Lead.STEP_ROW),
)
_ONE_AXIS = (Lead.IMAGE, Lead.MERGED, Lead.SAMPLES_MERGED, Lead.STEP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extents:
    """How many time steps and samples the trace was made with."""

    timesteps: int
    samples: int

    def lead(self, lead: Lead) -> tuple[int, ...]:
        """The traced extents of the leading axes."""
        match lead:
            case Lead.IMAGE | Lead.STEP:
                return (self.samples,)
            case Lead.UNSQUEEZED | Lead.STEP_ROW:
                return (1, self.samples)
            case Lead.SEPARATE:
                return (self.timesteps, self.samples)
            case Lead.SAMPLES_FIRST:
                return (self.samples, self.timesteps)
            case Lead.MERGED | Lead.SAMPLES_MERGED:
                return (self.timesteps * self.samples,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A traced tensor: the graph node that holds it, its leading axes, and the extents of C, C L or C H W.

    at: of a time step, its place in the sequence that the node holds; None where the trace is one step of many.
    """

    name: str
    lead: Lead
    extents: tuple[int, ...]
    at: int | None = None

    def leads(self, lead: Lead) -> Value:
        """The same value with other leading axes."""
        return replace(self, lead=lead)

    def step(self, at: int | None, lead: Lead = Lead.STEP) -> Value:
        """One step of a sequence."""
        return replace(self, lead=lead, at=at)

    def sequence(self, lead: Lead = Lead.SEPARATE) -> Value:
        """The whole sequence that a step is of."""
        return replace(self, lead=lead, at=None)

    def of(self, name: str, extents: tuple[int, ...] | None = None) -> Value:
        """What a node makes of the value: the same leading axes."""
        return replace(self, name=name, extents=self.extents if extents is None else extents)

    @property
    def lead_ndim(self) -> int:
        """The number of leading axes."""
        return 1 if self.lead in _ONE_AXIS else 2

    @property
    def time_axis(self) -> int | None:
        """The axis that is time alone."""
        return {Lead.SEPARATE: 0, Lead.SAMPLES_FIRST: 1}.get(self.lead)

    @property
    def ndim(self) -> int:
        """The number of axes of the traced tensor."""
        return self.lead_ndim + len(self.extents)

    def shape(self, extents: Extents) -> tuple[int, ...]:
        """The traced shape."""
        return (*extents.lead(self.lead), *self.extents)

    def reshaped(self, shape: tuple[int, ...], extents: Extents) -> Value | None:
        """The value after a reshape that merges or splits T and N, flattens the features or drops H = 1; else None."""
        (group,) = (group for group in _GROUPS if self.lead in group)
        line = ((self.extents[0], self.extents[2]),) if len(self.extents) == 3 and self.extents[1] == 1 else ()
        for lead in (self.lead, *group):
            for features in (self.extents, (math.prod(self.extents),), *line):
                if (*extents.lead(lead), *features) == shape:
                    return replace(self, lead=lead, extents=features)
        return None

    def __str__(self) -> str:
        place = "" if self.at is None else f", step {self.at},"
        return f"{self.lead.value}{place} of features {self.extents}"


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
    """The readings that a shape allows: an image, or time and batch, separate or merged, time or samples outermost."""
    readings: list[tuple[Lead, int, tuple[int, ...]]] = []
    if len(shape) >= 2:
        readings.append((Lead.IMAGE, shape[0], shape[1:]))
    if len(shape) >= 3 and shape[0] == timesteps:
        readings.append((Lead.SEPARATE, shape[1], shape[2:]))
    if len(shape) >= 2 and shape[0] % timesteps == 0:
        readings.append((Lead.MERGED, shape[0] // timesteps, shape[1:]))
    if len(shape) >= 3 and shape[1] == timesteps:
        readings.append((Lead.SAMPLES_FIRST, shape[0], shape[2:]))
    if len(shape) >= 2 and shape[0] % timesteps == 0:
        readings.append((Lead.SAMPLES_MERGED, shape[0] // timesteps, shape[1:]))
    return tuple(
        _possible(lead, samples, features, timesteps)
        for lead, samples, features in readings
        if len(features) <= 3 and 0 not in (samples, *features)
    )


def step_layout(shape: tuple[int, ...], timesteps: int, *, repeated: bool) -> tuple[Layout, ...]:
    """The reading as one step of a sequence, or of an image that comes again at each step."""
    if not 2 <= len(shape) <= 4 or 0 in shape:
        return ()
    return (_possible(Lead.IMAGE if repeated else Lead.STEP, shape[0], shape[1:], timesteps),)


def _possible(lead: Lead, samples: int, features: tuple[int, ...], timesteps: int) -> Layout:
    return Layout(lead=lead, extents=Extents(timesteps=timesteps, samples=samples), features=features)
