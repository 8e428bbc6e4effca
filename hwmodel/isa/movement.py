"""Instructions of every program: data movement, semaphores, the end of a queue."""

from __future__ import annotations

from dataclasses import dataclass

from hwmodel.isa.fields import S20, U1, U2, U10, U12, U16, U20, U24
from hwmodel.isa.places import Buffer


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """What every instruction carries: the layer that it belongs to."""

    layer: U10


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer(Instruction):
    """DMA: a part of a bank of a buffer, and a region of a tensor in external memory.

    Compressed membrane potentials travel by the mask in the same part of the engine's mask bank.
    """

    buffer: Buffer
    bank: U1
    part: U2 = 0
    tensor: U16
    t0: U16
    nt: U16
    n0: U12
    nn: U12
    y0: S20
    h: U20
    x0: S20
    w: U20
    c0: U24
    nc: U24
    flat: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Load(Transfer):
    """DMA: a region of a tensor to a bank; rows and columns outside the tensor arrive as zeros (halo).

    With `flat` the channels c0 .. c0+nc count elements in (row, column, channel) order, and y, x are unused.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Store(Transfer):
    """DMA: a bank to a region inside a tensor; never flat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal(Instruction):
    """Count a semaphore up, after everything before it in the queue."""

    semaphore: U12


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait(Instruction):
    """Wait until a semaphore is positive, then count it down."""

    semaphore: U12


@dataclass(frozen=True, slots=True, kw_only=True)
class Halt(Instruction):
    """The end of a queue."""
