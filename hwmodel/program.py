"""The program container: streams, tensor table, constants, and the configuration it was compiled for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import prod

import numpy as np
import numpy.typing as npt

from hwmodel.config import H2LearnConfig
from hwmodel.isa import Instruction, Queue

F16 = npt.NDArray[np.float16]


class Format(StrEnum):
    """How a tensor's elements stand in memory."""

    S1 = "s1"  # one bit
    FP16 = "fp16"
    MCOMP = "mcomp"  # FP16 where the mask is 1, packed tile by tile; space is kept for all


class Role(StrEnum):
    """What a tensor is for."""

    INPUT = "input"
    ACTIVATION = "activation"
    WEIGHT = "weight"
    NEURON = "neuron"
    STATE = "state"
    OUTPUT = "output"
    KEPT = "kept"  # by the forward pass, for the backward pass
    GRADIENT = "gradient"  # of a layer's sums, and the mask of its zeros
    LOSS_GRADIENT = "loss_gradient"  # written by the host
    WEIGHT_GRADIENT = "weight_gradient"  # in Mem 2, zero at the beginning of a batch
    MOMENTUM = "momentum"  # in Mem 2, zero at first


class Phase(StrEnum):
    """A piece of a program that the host launches as a whole; all queues end before the next begins.

    An inference program has RUN. A training program has FORWARD of a sub-batch, OVERLAP (forward of the next
    beside backward and weight gradients of this one), BACKWARD of the last one, and UPDATE. Mem 0 and Mem 1 change
    places from each launch to the next, except before UPDATE.
    """

    RUN = "run"
    FORWARD = "forward"
    OVERLAP = "overlap"
    BACKWARD = "backward"
    UPDATE = "update"


Streams = Mapping[Queue, tuple[Instruction, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A tensor in external memory, (time, sample, row, column, channel), the last index fastest.

    A mirrored one is a constant that stands at the same address in Mem 0 and Mem 1. One with `view_of` names the
    same bytes as another tensor in another shape, or as they stood one launch ago, in the other of these memories.
    Units: address in bytes.
    """

    name: str
    memory: int
    mirrored: bool
    address: int
    shape: tuple[int, int, int, int, int]
    format: Format
    role: Role
    layer: int
    view_of: str = ""

    @property
    def size_bytes(self) -> int:
        """Bytes in memory; bits are padded to whole 64-bit words."""
        elements = prod(self.shape)
        return -(-elements // 64) * 8 if self.format is Format.S1 else 2 * elements


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuronFacts:
    """One Soma stage of a layer: the IR node it runs ("" for none) and its (C, H, W)."""

    node: str
    fires: bool
    shape: tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What one pass over an engine computes, as the closed forms of its cycles need it."""

    name: str
    engine: Queue
    kind: str  # conv | fc | pool
    nodes: tuple[str, ...]
    neurons: tuple[NeuronFacts, ...]
    c_in: int
    c_out: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    out_h: int  # of the synapse, without rows that pooling drops
    out_w: int
    groups: int
    hold: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What the host does before and after the program runs.

    encoding: none | direct | bernoulli | latency; readout: none | rate | last | max.
    """

    input_shape: tuple[int, ...]  # (C, H, W) or (C,)
    input_has_time: bool
    encoding: str
    seed: int
    output_is_flat: bool
    readout: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """One parameter of the graph, and the tensors of the program that hold it, its gradient and its momentum.

    Weights stand as (kernel position or map position, input channel, output channel); a bias is the row (y, x) of its
    layer's neuron table.
    """

    parameter: str
    shape: tuple[int, ...]  # in the graph
    positions: int  # of the feature maps that a linear layer flattens; 1 for all else
    tensor: str
    gradient: str
    momentum: str  # "" without
    is_bias: bool
    layer: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerMasks:
    """Where the masks of table 3.2 stand: the tensors of a layer's input gradient, "" where it computes none."""

    layer: str
    kind: str  # conv | fc
    inputs: str  # mask of equation 3.2, of the gradients that arrive
    outputs: str  # mask of equation 3.1, of the spike gradients that are wanted; "" for all


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What a training program adds: its phases, the loss that the host computes, and the update."""

    phases: Mapping[Phase, Streams]
    loss: str
    loss_scale: float
    batch_group: int  # sub-batches between updates, over all machines
    machines: int  # that share a batch; their gradients are gathered before the update
    learning_rate: float
    momentum: float
    weight_decay: float
    master_weights: bool  # the host updates in f32
    parameters: tuple[Trained, ...]
    masks: tuple[LayerMasks, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A compiled program for sub-batches of `batch` samples over `timesteps`."""

    name: str
    config: H2LearnConfig
    timesteps: int
    batch: int
    streams: Streams  # of inference
    tensors: tuple[Tensor, ...]
    constants: Mapping[str, F16]
    layers: tuple[Layer, ...]
    host: Host
    meta: Mapping[str, str]
    training: Training | None = None

    @property
    def phases(self) -> Mapping[Phase, Streams]:
        """All that the host may launch."""
        return self.training.phases if self.training is not None else {Phase.RUN: self.streams}

    @property
    def instructions(self) -> int:
        """Instructions of all queues and phases."""
        return sum(len(stream) for streams in self.phases.values() for stream in streams.values())

    @property
    def input_index(self) -> int:
        """The tensor that the host writes."""
        return self._only(Role.INPUT)

    @property
    def output_index(self) -> int:
        """The tensor that the host reads."""
        return self._only(Role.OUTPUT)

    def index_of(self, name: str) -> int:
        """The place of a tensor in the table."""
        return next(i for i, tensor in enumerate(self.tensors) if tensor.name == name)

    def _only(self, role: Role) -> int:
        (index,) = (i for i, tensor in enumerate(self.tensors) if tensor.role is role and not tensor.view_of)
        return index
