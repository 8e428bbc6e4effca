"""Executes one population: its table of per-channel numbers, then its kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from compiler.fused.arena import SUM_GROUPS
from compiler.fused.finish import FinishName
from compiler.fused.population import PER_CHANNEL, KernelName, Norm, Population, Results
from compiler.fused.result_bits import part_dtype
from compiler.fused.spikes.geometry import BITS
from compiler.ir.ops import window_extent
from runtime.fused.cpu_kernels import CpuKernels, lanes_of
from runtime.fused.spikes.launch import Take

AllReduce = Callable[[Tensor], None]  # adds a tensor up over processes, in place

COUNT = 2  # row of the moments (3, C) beside mean and biased variance: how many values they are taken over


@dataclass(frozen=True, slots=True, kw_only=True)
class Norming:
    """The batch norm before a population: parameters (C,) in f32, running statistics, and how sums are shared."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    eps: float
    all_reduce: AllReduce | None


@dataclass(frozen=True, slots=True)
class _Table:
    """Rows of per-channel numbers (R, C), none where all are constants; of a batch norm also 1 / deviation, count."""

    rows: list[Tensor]
    reciprocal: Tensor | None
    count: float


@dataclass(frozen=True, slots=True)
class Neurons:
    """A population on maps x (T, N, H, W, C), or (1, N, H, W, C) if repeated: what does not depend on the device.

    numbers: its per-channel numbers by name, (C,) in f32.
    """

    population: Population
    x: Tensor
    numbers: Mapping[str, Tensor]
    norming: Norming | None
    take: Take

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Of the result."""
        _, samples, height, width, channels = self.x.shape
        window = self.population.window
        if window is not None:
            height, width = (
                window_extent(size, kernel, kernel, 0, window.ceil)
                for size, kernel in zip((height, width), window.kernel, strict=True)
            )
        return self.population.timesteps, samples, height, width, channels

    @property
    def count(self) -> float:
        """Values of one channel over all steps: repeated ones count each time."""
        _, samples, height, width, _ = self.x.shape
        return float(self.population.timesteps * samples * height * width)

    def number(self, name: str) -> Tensor:
        """One of the neuron's numbers for each channel."""
        value = getattr(self.population, name)
        return self.numbers[name] if value is PER_CHANNEL else _constant(value, self.x.shape[-1], self.x.device)

    def put_numbers(self, table: Tensor) -> None:
        """Write the rows of the table that come from no batch norm."""
        rows = self.population.rows
        for name, values in self.numbers.items():
            if name in rows:
                table[rows.index(name)] = values

    def running_moments(self) -> Tensor:
        """The running statistics as moments (3, C)."""
        assert self.norming is not None
        moments = self.take("moments", (3, self.x.shape[-1]), torch.float64)
        moments[0], moments[1] = self.norming.running_mean, self.norming.running_var
        moments[COUNT].fill_(self.count)
        return moments


class Run(Protocol):
    """One execution of a population on some device."""

    @property
    def out_shape(self) -> tuple[int, ...]: ...

    def first(self) -> tuple[Tensor, Tensor | None]:
        """Algorithm 1 with statistics taken anew: the result (T, N, H', W', C) and the moments.

        Those are mean, biased variance and count (3, C) of the batch norm's input, f64; None without a batch norm.
        """

    def forward(self, moments: Tensor | None) -> Tensor:
        """Algorithm 1 with moments that are known: the result."""

    def backward(self, moments: Tensor | None, grad: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Algorithms 2 and 3: gradients of x and of the batch norm's parameters.

        grad: of the result; overwritten. y: filled with the result once more.
        """


MakeRun = Callable[[Population, Tensor, Mapping[str, Tensor], Norming | None, Take], Run]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Memory for results, C-contiguous; None for those that are not wanted, see `Results`.

    y (T, N, H', W', C) of the input's type; words and mask (T, N, H', W', ceil(C / 32)) in int32.
    """

    y: Tensor | None = None
    words: Tensor | None = None
    mask: Tensor | None = None

    @property
    def results(self) -> Results:
        """Which are wanted."""
        found = Results.NONE
        for result, tensor in ((Results.Y, self.y), (Results.WORDS, self.words), (Results.MASK, self.mask)):
            if tensor is not None:
                found |= result
        return found


@dataclass(frozen=True, slots=True)
class NeuronsRun(Neurons):
    """One execution on this CPU, see `Run`."""

    @property
    def words_shape(self) -> tuple[int, ...]:
        """Of the result as words, and of its mask."""
        *pixels, channels = self.out_shape
        return *pixels, -(-channels // BITS)

    def first(self) -> tuple[Tensor, Tensor | None]:
        moments = self.moments()
        return self.forward(moments), moments

    def moments(self) -> Tensor | None:
        """What `first` returns of the batch norm, without a result."""
        if self.norming is None:
            return None
        if self.population.norm is Norm.RUNNING:
            return self.running_moments()
        moments = self.take("moments", (3, self.x.shape[-1]), torch.float64)
        sums = self._sums()
        self._kernels(KernelName.STATISTICS, self._flat(self.x), sums)
        self._kernels(FinishName.MOMENTS, self._flat(self.x), sums, moments[:COUNT])
        moments[COUNT] = self.count
        if self.norming.all_reduce is not None:
            merge(moments, self.norming.all_reduce)
        return moments

    def forward(self, moments: Tensor | None) -> Tensor:
        y = self.take("y", self.out_shape, self.x.dtype)
        self.fill(moments, Outputs(y=y))
        return y

    def fill(self, moments: Tensor | None, outputs: Outputs) -> None:
        """Algorithm 1 with moments that are known: the results that are wanted, one of them at least.

        Raises: ValueError for words where the population is not `binary`, for a mask where it is not `masked`.
        """
        kernels, table = self._writing(outputs.results), self._table(moments)
        targets = [] if outputs.y is None else [self._output(outputs.y)]
        part = getattr(torch, part_dtype(lanes_of(outputs.results)))
        targets += [self._output(bits.view(part)) for bits in (outputs.words, outputs.mask) if bits is not None]
        kernels(KernelName.FORWARD, self._input(self.x), *table.rows, *targets)

    def backward(
        self, moments: Tensor | None, grad: Tensor, y: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """As `Run.backward`; without y nothing but gradients is written, and they are the same."""
        kernels, again = self._writing(Outputs(y=y).results), [] if y is None else [self._output(y)]
        x, table = self._input(self.x), self._table(moments)
        targets, grad_x = [self._output(grad)], grad
        if not self.population.in_place:
            grad_x = self.take("grad_x", tuple(self.x.shape), self.x.dtype)
            targets.append(self._input(grad_x))
        if self.population.norm is Norm.NONE:
            kernels(KernelName.GRADIENT, x, *table.rows, *targets, *again)
            return grad_x, None
        sums = self._sums()
        if self.population.norm is Norm.RUNNING:
            kernels(KernelName.GRADIENT, x, *table.rows, *targets, sums, *again)
            return grad_x, self._norm_gradients(sums, table)
        kernels(KernelName.GRADIENT_SUMS, x, *table.rows, targets[0], sums, *again)
        norm_gradients = self._norm_gradients(sums, table)
        self._kernels(KernelName.GRADIENT_INPUT, x, *table.rows, *targets)
        return grad_x, norm_gradients

    @property
    def _kernels(self) -> CpuKernels:
        return self._writing(Results.Y)

    def _writing(self, results: Results) -> CpuKernels:
        return CpuKernels(self.population, self.x.shape[-1], results)

    def _sums(self) -> Tensor:
        return self.take("sums", (SUM_GROUPS, 2, self.x.shape[-1]), torch.float64)

    def _table(self, moments: Tensor | None) -> _Table:
        rows = self.population.rows
        if not rows:
            return _Table([], None, 0.0)
        table = self.take("table", (len(rows), self.x.shape[-1]), torch.float32)
        self.put_numbers(table)
        if self.norming is None or moments is None:
            return _Table([table], None, 0.0)
        norming, reciprocal = self.norming, self.take("reciprocal", (self.x.shape[-1],), torch.float64)
        arguments = (norming.weight, norming.bias, self.number("input_scale"), self.number("leak_bias"))
        self._kernels(FinishName.TABLE, moments[:COUNT], *arguments, table, reciprocal, norming.eps)
        return _Table([table], reciprocal, float(moments[COUNT, 0]))

    def _norm_gradients(self, sums: Tensor, table: _Table) -> tuple[Tensor, Tensor]:
        assert self.norming is not None
        assert table.reciprocal is not None
        channels = self.x.shape[-1]
        own = self.take("totals", (2, channels), torch.float64)
        self._kernels(FinishName.TOTALS, sums, own)
        everywhere = own
        if self.norming.all_reduce is not None and self.population.norm is Norm.BATCH:
            everywhere = own.clone()
            self.norming.all_reduce(everywhere)
        grads = [
            torch.empty(channels, dtype=torch.float32) for _ in range(2)
        ]  # they leave us as the parameters' gradients
        arguments = (own, everywhere, table.reciprocal, self.number("input_scale"), table.rows[0], *grads)
        self._kernels(FinishName.GRADIENTS, *arguments, table.count)
        return grads[0], grads[1]

    def _input(self, maps: Tensor) -> Tensor:
        values = maps if self.population.window is not None else self._flat(maps)
        return values[0] if self.population.repeated and self.population.window is not None else values

    def _output(self, maps: Tensor) -> Tensor:
        return maps if self.population.window is not None else maps.flatten(1, 3)

    def _flat(self, maps: Tensor) -> Tensor:
        """Pixels of all samples as rows; without the time axis if repeated."""
        return maps.flatten(0, 3) if self.population.repeated else maps.flatten(1, 3)


def merge(moments: Tensor, all_reduce: AllReduce) -> None:
    """Moments over the values of all processes from those of each, in place."""
    mean, var, count = moments.clone()
    sums = torch.stack([mean * count, (var + mean * mean) * count, count])
    all_reduce(sums)
    moments[COUNT] = sums[2]
    moments[0] = sums[0] / sums[2]
    moments[1] = (sums[1] / sums[2] - moments[0] * moments[0]).clamp(min=0)


@functools.lru_cache(maxsize=1024)
def _constant(value: float, channels: int, device: torch.device) -> Tensor:
    return torch.full((channels,), value, device=device)
