"""The instruction set: each instruction is declared once; encoder, decoder, assembler and text follow.

A word has 256 bits, little-endian: the opcode in the lowest 6, then the fields in the order declared, then
zeros. Enums are encoded as the position of their member.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, get_args, get_type_hints

WORD_BYTES = 32
OPCODE_BITS = 6
NEURON_FIELDS = 9  # pre_bias, scale, bias, decay, threshold, reset_value, initial, th_l, th_r: a Soma stage's table
FP16_OVERFLOW = 65520.0  # the smallest magnitude that FP16 rounds to infinity


class Queue(StrEnum):
    """The in-order queues: three engines, and one DMA for each external memory."""

    FE = "fe"
    BE = "be"
    WUE = "wue"
    DMA0 = "dma0"
    DMA1 = "dma1"
    DMA2 = "dma2"


class Buffer(StrEnum):
    """On-chip buffers; each has two banks."""

    S_IN = "s_in"  # Forward Engine: input spikes
    W = "w"
    PSUM = "psum"  # partial sums, then membrane potentials
    S_OUT = "s_out"
    NEURON = "neuron"  # parameters of the Soma
    STATE = "state"  # membrane potentials between chunks of time; bank i belongs to neuron stage i
    BE_IN = "be_in"  # Backward Engine: real-valued input
    BE_W = "be_w"
    BE_PSUM = "be_psum"
    BE_OUT = "be_out"
    BE_NEURON = "be_neuron"
    BE_STATE = "be_state"


@dataclass(frozen=True, slots=True)
class EngineBuffers:
    """The buffers of an engine, by what they hold."""

    source: Buffer
    weights: Buffer
    psum: Buffer
    out: Buffer
    neuron: Buffer
    state: Buffer


ENGINE_BUFFERS = {
    Queue.FE: EngineBuffers(Buffer.S_IN, Buffer.W, Buffer.PSUM, Buffer.S_OUT, Buffer.NEURON, Buffer.STATE),
    Queue.BE: EngineBuffers(
        Buffer.BE_IN, Buffer.BE_W, Buffer.BE_PSUM, Buffer.BE_OUT, Buffer.BE_NEURON, Buffer.BE_STATE
    ),
}


class LutMode(StrEnum):
    """What the sub-LUTs hold: sums of three taps, or single weights."""

    CONV = "conv"
    FC = "fc"


class ResetKind(StrEnum):
    """What a spike does to the membrane potential."""

    HARD = "hard"
    SOFT = "soft"
    NONE = "none"


class CompareRule(StrEnum):
    """Whether a membrane potential equal to the threshold fires."""

    GE = "ge"
    GT = "gt"


class PoolKind(StrEnum):
    """Pooling of the Soma."""

    NONE = "none"
    AVG = "avg"
    MAX = "max"


@dataclass(frozen=True, slots=True)
class Bits:
    """Width of an integer field."""

    width: int
    signed: bool = False


U1 = Annotated[int, Bits(1)]
U2 = Annotated[int, Bits(2)]
U8 = Annotated[int, Bits(8)]
U10 = Annotated[int, Bits(10)]
U12 = Annotated[int, Bits(12)]
U16 = Annotated[int, Bits(16)]
U24 = Annotated[int, Bits(24)]
S16 = Annotated[int, Bits(16, signed=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """What every instruction carries: the layer that it belongs to."""

    layer: U10


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer(Instruction):
    """DMA: a bank of a buffer, and a region of a tensor in external memory."""

    buffer: Buffer
    bank: U1
    tensor: U16
    t0: U16
    nt: U16
    n0: U12
    nn: U12
    y0: S16
    h: U16
    x0: S16
    w: U16
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
class LutProgram(Instruction):
    """Forward Engine: fill the sub-LUTs from a weight bank.

    conv: `rows` rows of nine taps; fc: `groups` groups of rows x 3 weights; each for `cols` columns.
    """

    w_bank: U1
    mode: LutMode
    rows: U12
    groups: U8
    cols: U12


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvTile(Instruction):
    """One grid iteration of a convolution: Forward Engine through the LUTs, Backward Engine dense.

    `h` x `w` outputs for nn samples at nt steps, into a partial-sum bank (from +0 unless `accumulate`).
    Forward: PE row j holds piece (first_piece + j) of the channel-major list. Backward: one channel per row,
    kernel rows tap_row0 .. tap_row0 + tap_rows; with `hold` the source has one step that serves all.
    """

    src_bank: U1
    w_bank: U1
    dst_bank: U1
    accumulate: bool
    kernel_h: U10
    kernel_w: U10
    stride_h: U10
    stride_w: U10
    h: U10
    w: U10
    nt: U16
    nn: U12
    rows: U12
    cols: U12
    first_piece: U12
    tap_row0: U10
    tap_rows: U10
    hold: bool
    in_sparsity: bool
    out_sparsity: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FcTile(Instruction):
    """One grid iteration of a linear layer: `inputs` inputs, on the Forward Engine in `groups` of rows x 3."""

    src_bank: U1
    w_bank: U1
    dst_bank: U1
    accumulate: bool
    groups: U8
    inputs: U16
    rows: U12
    cols: U12
    nt: U16
    nn: U12
    hold: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSetup(Instruction):
    """The windows of the next Soma instructions: slot 1 before the first neuron, slot 2 after it.

    The first window starts at (top, left) of the tile; the padded input ends at (limit_h, limit_w).
    """

    slot: U2
    kernel_h: U10
    kernel_w: U10
    stride_h: U10
    stride_w: U10
    out_h: U10
    out_w: U10
    top: S16
    left: S16
    limit_h: U16
    limit_w: U16
    include_pad: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Soma(Instruction):
    """Neurons and pooling over the partial sums of a tile: [pool1] neuron 1 [pool2] [neuron 2].

    Spikes go to the out bank; the membrane of a last neuron that does not fire stays in the partial-sum bank.
    """

    psum_bank: U1
    neuron_bank: U1
    out_bank: U1
    nt: U16
    nn: U12
    h: U10
    w: U10
    cols: U12
    present1: bool
    reset1: ResetKind
    compare1: CompareRule
    fire1: bool
    pre_bias1: bool
    scale1: bool
    bias1: bool
    present2: bool
    reset2: ResetKind
    compare2: CompareRule
    fire2: bool
    scale2: bool
    bias2: bool
    pool1: PoolKind
    pool2: PoolKind
    state_in: bool
    state_out: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Halt(Instruction):
    """The end of a queue."""


OPCODES: dict[int, type[Instruction]] = {
    1: Load,
    2: Store,
    3: Signal,
    4: Wait,
    5: LutProgram,
    6: ConvTile,
    7: FcTile,
    8: PoolSetup,
    9: Soma,
    10: Halt,
}
OPCODE_OF = {kind: code for code, kind in OPCODES.items()}


@dataclass(frozen=True, slots=True)
class FieldLayout:
    """Where a field lies in the word, and how it is read."""

    name: str
    offset: int
    width: int
    signed: bool
    enum: type[StrEnum] | None
    is_bool: bool


def _layout(kind: type[Instruction]) -> tuple[FieldLayout, ...]:
    fields = []
    offset = OPCODE_BITS
    for name, hint in get_type_hints(kind, include_extras=True).items():
        arguments = get_args(hint)
        enum = hint if not arguments and issubclass(hint, StrEnum) else None
        if arguments:
            width, signed = arguments[1].width, arguments[1].signed
        else:
            width, signed = (max(1, (len(enum) - 1).bit_length()) if enum else 1), False
        fields.append(FieldLayout(name, offset, width, signed, enum, hint is bool))
        offset += width
    assert offset <= WORD_BYTES * 8, kind
    return tuple(fields)


_LAYOUTS = {kind: _layout(kind) for kind in OPCODES.values()}


def layout(kind: type[Instruction]) -> tuple[FieldLayout, ...]:
    """The fields of an instruction class, derived from its annotations."""
    return _LAYOUTS[kind]


def most(kind: type[Instruction], name: str) -> int:
    """The largest number that a field states."""
    item = next(item for item in layout(kind) if item.name == name)
    return (1 << item.width - item.signed) - 1


def mnemonic(kind: type[Instruction]) -> str:
    """The assembler's name of an instruction class."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()
