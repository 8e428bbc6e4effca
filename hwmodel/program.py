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


class Role(StrEnum):
    """What a tensor is for."""

    INPUT = "input"
    ACTIVATION = "activation"
    WEIGHT = "weight"
    NEURON = "neuron"
    STATE = "state"
    OUTPUT = "output"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A tensor in external memory, (time, sample, row, column, channel), the last index fastest.

    A mirrored one is a constant that stands at the same address in Mem 0 and Mem 1.
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
class Program:
    """A compiled program for one sub-batch of `batch` samples over `timesteps`."""

    name: str
    config: H2LearnConfig
    timesteps: int
    batch: int
    streams: Mapping[Queue, tuple[Instruction, ...]]
    tensors: tuple[Tensor, ...]
    constants: Mapping[str, F16]
    layers: tuple[Layer, ...]
    host: Host
    meta: Mapping[str, str]

    @property
    def instructions(self) -> int:
        """Instructions of all queues."""
        return sum(len(stream) for stream in self.streams.values())

    @property
    def input_index(self) -> int:
        """The tensor that the host writes."""
        return self._only(Role.INPUT)

    @property
    def output_index(self) -> int:
        """The tensor that the host reads."""
        return self._only(Role.OUTPUT)

    def _only(self, role: Role) -> int:
        (index,) = (i for i, tensor in enumerate(self.tensors) if tensor.role is role)
        return index
