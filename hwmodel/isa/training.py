"""Instructions of training: gradients backwards, weight gradients, the update, and the host's part."""

from __future__ import annotations

from dataclasses import dataclass

from hwmodel.isa.fields import S16, U1, U2, U10, U12, U16, U32, PoolKind, ResetKind
from hwmodel.isa.movement import Instruction


@dataclass(frozen=True, slots=True, kw_only=True)
class GradConvTile(Instruction):
    """Backward Engine: one grid iteration of a convolution's input gradient, equation 2.4.

    `h` x `w` outputs of `cols` channels from `rows` channels of gradients; output (y, x) takes tap (ky, kx) at row
    (y + top - ky) / stride_h of the source where that divides, columns alike. The source's zeros are skipped by
    its mask, and with `out_sparsity` the outputs by the mask in `mask_part` of the mask bank.
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
    top: S16
    left: S16
    nt: U16
    nn: U12
    rows: U12
    cols: U12
    out_sparsity: bool
    mask_part: U2


@dataclass(frozen=True, slots=True, kw_only=True)
class GradFcTile(Instruction):
    """Backward Engine: one grid iteration of a linear layer's input gradient, for `h` x `w` positions of a map."""

    src_bank: U1
    w_bank: U1
    dst_bank: U1
    accumulate: bool
    h: U10
    w: U10
    nt: U16
    nn: U12
    rows: U12
    cols: U12


@dataclass(frozen=True, slots=True, kw_only=True)
class Grad(Instruction):
    """The Soma's layer backwards in time and order, equations 2.4 and 2.5: from h x w to out_h x out_w gradients.

    Reads the gradient of the layer's output in the partial-sum bank, and the kept parts in the out, mask and
    membrane banks of the same number; leaves the gradient of the Soma's input there, and the mask of its zeros.
    `eta` is the surrogate's peak as FP16 bits; windows as set up for the Soma.
    """

    bank: U1
    neuron_bank: U1
    t0: U16  # first step of the chunk
    nt: U16
    nn: U12
    h: U10
    w: U10
    out_h: U10
    out_w: U10
    cols: U12
    present1: bool
    reset1: ResetKind
    fire1: bool
    detach1: bool
    scale1: bool
    eta1: U16
    present2: bool
    reset2: ResetKind
    fire2: bool
    detach2: bool
    scale2: bool
    eta2: U16
    pool1: PoolKind
    pool2: PoolKind
    state_in: bool
    state_out: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateTile(Instruction):
    """Weight Update Engine: the weight gradients of a tile of a convolution, equation 2.7.

    From `channels` channels of spikes and h x w gradients of `cols` channels at nt <= rows steps. With `bias` the
    sums of the gradients, equation 2.8, beside them: what a tap that always spikes would collect.
    """

    src_bank: U1
    gm_bank: U1
    dst_bank: U1
    accumulate: bool
    bias: bool
    kernel_h: U10
    kernel_w: U10
    stride_h: U10
    stride_w: U10
    h: U10
    w: U10
    nt: U16
    nn: U12
    channels: U16
    cols: U12


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateFcTile(Instruction):
    """Weight Update Engine: the weight gradients of a linear layer; `bias` as in a convolution."""

    src_bank: U1
    gm_bank: U1
    dst_bank: U1
    accumulate: bool
    bias: bool
    inputs: U16
    cols: U12
    nt: U16
    nn: U12


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterTile(Instruction):
    """Backward Engine: the weight gradients of a tile of a layer that takes real values (the encoding layer).

    A linear layer has a 1 x 1 kernel and one output; with `hold` the source has one step that serves all.
    """

    src_bank: U1
    gm_bank: U1
    dst_bank: U1
    accumulate: bool
    bias: bool
    kernel_h: U10
    kernel_w: U10
    stride_h: U10
    stride_w: U10
    h: U10
    w: U10
    nt: U16
    nn: U12
    channels: U12
    cols: U12
    hold: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AddGradient(Instruction):
    """Add a slice of the weight gradients of a sub-batch to those loaded from memory: channels first to first + count.

    stream = stream + psum; the sum stands in the stream's bank.
    """

    psum_bank: U1
    part: U2
    stream_bank: U1
    first: U16
    count: U16


@dataclass(frozen=True, slots=True, kw_only=True)
class SgdStep(Instruction):
    """Weight Update Engine: one step of stochastic gradient descent on a slice of weights.

    Leaves the new weights, the new momentum and a gradient of zero in their banks. Numbers as the bits of f32.
    Gradients and momentum are those of the loss times samples and loss scale, which the step divides out.
    """

    gradient_bank: U1
    weight_bank: U1
    momentum_bank: U1
    has_momentum: bool
    learning_rate: U32
    momentum: U32
    weight_decay: U32
    inverse_loss_scale: U32
    batch_group: U16


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLoss(Instruction):
    """Host: read the network's output, write the gradient of the loss with respect to it, in FP16."""

    output: U16
    gradient: U16


@dataclass(frozen=True, slots=True, kw_only=True)
class HostUpdate(Instruction):
    """Host: a step of its optimiser in f32; reads the gradient, writes the weights to both memories, clears it.

    A gradient smaller than its tensor is that of the first row, as a bias in a neuron table.
    """

    gradient: U16
    weight: U16
