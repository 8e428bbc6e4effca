"""Instructions of the forward pass: sub-LUTs, grid iterations, pooling and the Soma."""

from __future__ import annotations

from dataclasses import dataclass

from hwmodel.isa.fields import S16, U1, U2, U8, U10, U12, U16, CompareRule, LutMode, PoolKind, ResetKind
from hwmodel.isa.movement import Instruction


@dataclass(frozen=True, slots=True, kw_only=True)
class LutProgram(Instruction):
    """Forward Engine: fill the sub-LUTs from a weight bank, for `cols` columns.

    conv: the bank holds (taps, inputs, cols); row j takes nine taps, piece (first_piece + j) of the list of all
    inputs' pieces. fc: the bank holds (inputs, cols), for `groups` groups of rows x 3 weights, absent ones zero.
    """

    w_bank: U1
    mode: LutMode
    rows: U12
    groups: U8
    cols: U12
    taps: U10
    inputs: U16
    first_piece: U12


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
    With `keep` the parts that the backward pass needs stand beside them: the masks of neurons that fire, the winners
    of a max pooling before neuron 1, and the spikes of neuron 1 and membranes that are asked for.
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
    keep: bool = False
    keep_s1: bool = False
    keep_m1: bool = False
    keep_m2: bool = False
