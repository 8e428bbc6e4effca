"""Predicts time and memory of a training step on a GPU, from bytes, launches and multiply-adds: a roofline."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compiler.fused.predict_facts import STAGE, Direction, Family, Launch, Unit, Work
from hwmodel.gpus import Gpu, Software

GB, TERA, GIB, MICRO = 1e9, 1e12, 2**30, 1e-6
MIB = 2**20
FLOPS_PER_MULTIPLY_ADD = 2
OPTIMISER_COPIES = 1  # values that the optimiser keeps for each parameter: momentum


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedMemory:
    """Predicted bytes at the peak of a training step, as torch's allocator counts them; without the CUDA context."""

    activations: int  # kept for the backward pass, at the end of the forward pass
    parameters: int  # with what the optimiser keeps
    peak: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedTime:
    """Predicted seconds of a training step: the device's by family, the host's to launch; the larger one counts."""

    device_s: Mapping[Family, float]
    host_s: float

    @property
    def total_device_s(self) -> float:
        """Of all kernels, one after the other."""
        return math.fsum(self.device_s.values())

    @property
    def step_s(self) -> float:
        """Launches run ahead of the device as long as it is the slower one."""
        return max(self.total_device_s, self.host_s)


def predict_time(work: Work, gpu: Gpu, software: Software, direction: Direction | None = None) -> PredictedTime:
    """Predicted seconds of a step or one direction, without loss, update of weights and data loading.

    t(kernel) = max(floor, bytes / (bandwidth * fraction), 2 * multiply-adds / (peak * fraction))
    step = max(host, sum of t)
    """
    device: defaultdict[Family, float] = defaultdict(float)
    host = 0.0
    for unit in work.units:
        launches = [launch for launch in unit.launches if direction in (None, launch.direction)]
        for launch in launches:
            device[launch.family] += launch.count * kernel_seconds(launch, gpu, software)
        host += _host_microseconds(unit, launches, software, direction) * MICRO
    return PredictedTime(device_s=dict(device), host_s=host)


def _host_microseconds(
    unit: Unit, launches: Sequence[Launch], software: Software, direction: Direction | None
) -> float:
    """A stage is one operator, half of it each way; everything else costs what its launches cost."""
    if unit.kind == STAGE:
        return software.stage.value / (1 if direction is None else 2)
    return sum(launch.count for launch in launches) * software.launch.value


def kernel_seconds(launch: Launch, gpu: Gpu, software: Software) -> float:
    """One kernel on the device. An elementwise kernel whose arguments all fit into L2 runs at L2's bandwidth."""
    bandwidth = gpu.memory_bandwidth.value
    if launch.family is Family.ELEMENTWISE and launch.moved_bytes <= gpu.l2.value * MIB:
        bandwidth = gpu.l2_bandwidth.value
    seconds = launch.moved_bytes / (bandwidth * GB * software.bandwidth_fraction.value)
    if launch.multiply_adds:
        seconds = max(seconds, FLOPS_PER_MULTIPLY_ADD * launch.multiply_adds / _flops(launch.family, gpu, software))
    return max(seconds, software.kernel_floor.value * MICRO)


def _flops(family: Family, gpu: Gpu, software: Software) -> float:
    """Reached a second."""
    if family is Family.CONVOLUTION:
        return gpu.convolution.value * TERA * gpu.convolution_fraction.value
    return gpu.matrix_multiply.value * TERA * software.matrix_multiply_fraction.value


def predict_memory(work: Work, *, workspace_bytes: int, optimiser_copies: int = OPTIMISER_COPIES) -> PredictedMemory:
    """Predicted bytes: what is alive at each operator, forward and backward; the peak is the most of it."""
    parameters = work.parameter_bytes * (1 + optimiser_copies)
    alive = _Alive(work.units)
    most = max(
        max(alive.forward(at) + unit.forward_bytes, alive.backward(at) + unit.backward_bytes)
        for at, unit in enumerate(work.units)
    )
    peak = parameters + work.block_bytes + workspace_bytes + most
    return PredictedMemory(activations=work.kept_bytes, parameters=parameters, peak=peak)


def fits(memory: PredictedMemory, gpu: Gpu) -> bool:
    """Whether the predicted peak fits into the device."""
    return memory.peak <= gpu.memory.value * GIB


class _Alive:
    """Values, what is kept, and gradients by the operators that make and read them."""

    def __init__(self, units: tuple[Unit, ...]) -> None:
        self._units = units
        self._sizes: dict[str, int] = {}
        self._made: dict[str, int] = {}
        self._read: dict[str, int] = {}  # by the last one
        self._readers: defaultdict[str, list[int]] = defaultdict(list)
        for at, unit in enumerate(units):
            for name, size in (*unit.reads.items(), *unit.writes.items()):
                self._sizes.setdefault(name, size)
                self._read[name] = at
            for name in unit.writes:
                self._made[name] = at
            for name in unit.reads:
                self._readers[name].append(at)

    def forward(self, at: int) -> int:
        """While operator `at` runs: what is kept so far, and values still to be read or just written."""
        kept = self._kept(at)
        needed = {name for name, last in self._read.items() if self._made.get(name, -1) <= at <= last}
        return sum(kept.values()) + sum(self._sizes[name] for name in needed if name not in kept)

    def backward(self, at: int) -> int:
        """While its backward pass runs: what is kept by those before, gradients made and not yet used up."""
        flowing = [name for name in self._sizes if self._flows(name, at)]
        weights = sum(unit.parameter_bytes for unit in self._units[at:])
        return sum(self._kept(at).values()) + sum(self._gradient_bytes(name, at) for name in flowing) + weights

    def _kept(self, at: int) -> dict[str, int]:
        return {key: size for unit in self._units[: at + 1] for key, size in unit.kept.items()}

    def _flows(self, name: str, at: int) -> bool:
        """Whether a value's gradient is alive: it is wanted, was begun by a reader and not yet used by its maker."""
        made = self._made.get(name)
        return made is not None and made <= at <= self._read[name] and self._is_wanted(name)

    def _is_wanted(self, name: str) -> bool:
        unit = self._units[self._made[name]]
        return unit.input_gradient or unit.parameter_bytes > 0

    def _gradient_bytes(self, name: str, at: int) -> int:
        """Twice while a second reader's gradient is added; none of one that lies in the block."""
        unit, size = self._units[at], self._sizes[name]
        if name not in unit.reads:
            return size
        own = size if unit.keeps_gradient else 0
        return own + (size if self._readers[name][-1] > at else 0)
