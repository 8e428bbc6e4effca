"""Where instructions run and what they work on: queues, on-chip buffers, and which engine uses which."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum


class Queue(StrEnum):
    """The in-order queues: three engines, one DMA for each external memory, and the host."""

    FE = "fe"
    BE = "be"
    WUE = "wue"
    DMA0 = "dma0"
    DMA1 = "dma1"
    DMA2 = "dma2"
    HOST = "host"


class Buffer(StrEnum):
    """On-chip buffers; each has two banks, and a bank up to four parts that share its capacity.

    Part 0 of an out or partial-sum bank is a layer's result. What training keeps of neuron k of the layer stands
    in part 1 + k: spikes in the out bank, gradient masks in the mask bank, membrane potentials in the
    partial-sum bank (Soma) or the `be_m` bank (Grad). Part 3 of a mask bank marks the winners of a max pooling.
    """

    S_IN = "s_in"  # Forward Engine: input spikes
    W = "w"
    PSUM = "psum"  # partial sums, then membrane potentials
    S_OUT = "s_out"
    MASK = "mask"  # gradient masks, equation 3.1
    NEURON = "neuron"  # parameters of the Soma
    STATE = "state"  # membrane potentials between chunks of time; bank i belongs to neuron stage i
    BE_IN = "be_in"  # Backward Engine: real-valued input; part 1 the mask of its zeros, equation 3.2
    BE_W = "be_w"
    BE_PSUM = "be_psum"
    BE_OUT = "be_out"
    BE_MASK = "be_mask"  # part 0: the mask of the gradients that Grad produced
    BE_M = "be_m"  # membrane potentials of the forward pass, or the gradients that an encoding layer's weights take
    BE_NEURON = "be_neuron"
    BE_STATE = "be_state"
    BE_GRAD = "be_grad"  # weight gradients on their way through the adder
    WU_IN = "wu_in"  # Weight Update Engine: input spikes
    WU_GM = "wu_gm"  # membrane potential gradients
    WU_PSUM = "wu_psum"  # weight gradients of a sub-batch; part 1: of the bias
    WU_GRAD = "wu_grad"  # weight gradients on their way through the adder and the SGD unit
    WU_WEIGHT = "wu_weight"
    WU_MOMENTUM = "wu_momentum"


class Part(IntEnum):
    """Parts of a bank."""

    RESULT = 0
    FIRST = 1  # of the first neuron
    SECOND = 2
    WINNERS = 3


@dataclass(frozen=True, slots=True)
class EngineBuffers:
    """The buffers of an engine with a Soma, by what they hold."""

    source: Buffer
    weights: Buffer
    psum: Buffer
    out: Buffer
    mask: Buffer
    neuron: Buffer
    state: Buffer


ENGINE_BUFFERS = {
    Queue.FE: EngineBuffers(Buffer.S_IN, Buffer.W, Buffer.PSUM, Buffer.S_OUT, Buffer.MASK, Buffer.NEURON, Buffer.STATE),
    Queue.BE: EngineBuffers(
        Buffer.BE_IN, Buffer.BE_W, Buffer.BE_PSUM, Buffer.BE_OUT, Buffer.BE_MASK, Buffer.BE_NEURON, Buffer.BE_STATE
    ),
}


@dataclass(frozen=True, slots=True)
class GradientBuffers:
    """The buffers of an engine that computes weight gradients."""

    source: Buffer
    gradient: Buffer  # of the layer's sums
    psum: Buffer
    stream: Buffer


GRADIENT_BUFFERS = {
    Queue.WUE: GradientBuffers(Buffer.WU_IN, Buffer.WU_GM, Buffer.WU_PSUM, Buffer.WU_GRAD),
    Queue.BE: GradientBuffers(Buffer.BE_IN, Buffer.BE_M, Buffer.BE_PSUM, Buffer.BE_GRAD),
}
