"""Executes one population on a GPU: the same algorithms as on the CPU, by the GPU schedule, without a host's wait."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from compiler.fused.gpu_launch import Extents, GpuKernel
from compiler.fused.population import Norm, Population
from runtime.fused.cuda_loader import sum_groups
from runtime.fused.gpu_kernels import launch_on_gpu
from runtime.fused.neurons import COUNT, Neurons, merge


class Launch(Protocol):
    """Launches one kernel of a population on arrays by the names of its arguments, see `GpuKernel`."""

    def __call__(
        self,
        population: Population,
        name: GpuKernel,
        extents: Extents,
        arrays: Mapping[str, Tensor],
        numbers: Mapping[str, float],
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class GpuNeuronsRun(Neurons):
    """One execution on a GPU, see `runtime.fused.neurons.Run`; all of it is on torch's current stream."""

    launch: Launch = launch_on_gpu

    def first(self) -> tuple[Tensor, Tensor | None]:
        match self.population.norm:
            case Norm.NONE:
                return self.forward(None), None
            case Norm.RUNNING:
                moments = self.running_moments()
                return self.forward(moments), moments
            case Norm.BATCH:
                return self._with_statistics()

    def forward(self, moments: Tensor | None) -> Tensor:
        y = self._empty_y()
        arrays, population = {"x": self.x, "y": y}, self.population
        if self.norming is None or moments is None:
            self._launch(GpuKernel.FORWARD, arrays | self._plain_table())
        else:  # the kernel for running statistics takes any that are given
            table = self._norm_arrays(moments)
            rows = len(replace(population, norm=Norm.RUNNING).rows)
            self._launch(GpuKernel.FORWARD, arrays | table | {"table": table["table"][:rows]}, norm=Norm.RUNNING)
        return y

    def backward(self, moments: Tensor | None, grad: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        arrays, grad_x = {"x": self.x, "grad_y": grad, "y": y}, grad
        if not self.population.in_place:
            grad_x = self.take("grad_x", tuple(self.x.shape), self.x.dtype)
            arrays["grad_x"] = grad_x
        if self.norming is None or moments is None:
            self._launch(GpuKernel.GRADIENT, arrays | self._plain_table())
            return grad_x, None
        arrays |= self._table(moments)
        name = GpuKernel.GRADIENT_SUMS if self.population.norm is Norm.BATCH else GpuKernel.GRADIENT
        arrays["sums"] = self._sums(name)
        self._launch(name, arrays)
        norm_gradients = self._finish(arrays, moments)
        if self.population.norm is Norm.BATCH:
            self._launch(GpuKernel.GRADIENT_INPUT, arrays)
        return grad_x, norm_gradients

    def _with_statistics(self) -> tuple[Tensor, Tensor]:
        assert self.norming is not None
        sums = self._sums(GpuKernel.STATISTICS)
        self._launch(GpuKernel.STATISTICS, {"x": self.x, "sums": sums})
        moments = self.take("moments", (3, self.x.shape[-1]), torch.float64)
        moments[COUNT].fill_(self.count)
        if self.norming.all_reduce is not None:
            self._put_moments(sums, moments)
            merge(moments, self.norming.all_reduce)
            return self.forward(moments), moments
        y = self._empty_y()
        self._launch(GpuKernel.FORWARD, {"x": self.x, "y": y, "sums": sums} | self._norm_arrays(moments))
        return y, moments

    def _put_moments(self, sums: Tensor, moments: Tensor) -> None:
        """Mean and biased variance from the partial sums of x - x[0]."""
        mean, square = sums.sum(0) / self._values
        moments[0] = mean + self.x[0, 0, 0, 0]
        moments[1] = (square - mean * mean).clamp(min=0)

    def _finish(self, arrays: dict[str, Tensor], moments: Tensor) -> tuple[Tensor, Tensor]:
        """The parameters' gradients, and with batch statistics the rows that gradient_input subtracts."""
        assert self.norming is not None
        channels, device = self.x.shape[-1], self.x.device
        weight, bias = (torch.empty(channels, device=device) for _ in range(2))  # they leave us
        given = {"scale": self.number("input_scale"), "grad_weight": weight, "grad_bias": bias}
        self._launch(GpuKernel.FINISH, arrays | given, count=self.count)
        if self.norming.all_reduce is not None and self.population.norm is Norm.BATCH:
            everywhere = arrays["sums"].sum(0)
            self.norming.all_reduce(everywhere)
            mean_grad, mean_grad_x = everywhere / moments[COUNT]
            rows, reciprocal = self.population.rows, arrays["reciprocal"]
            arrays["table"][rows.index("mean_grad")] = mean_grad
            arrays["table"][rows.index("mean_grad_x")] = reciprocal * reciprocal * mean_grad_x
        return weight, bias

    def _norm_arrays(self, moments: Tensor) -> dict[str, Tensor]:
        """What `forward` makes the batch norm's rows of, and where it puts them."""
        assert self.norming is not None
        given = {"weight": self.norming.weight, "bias": self.norming.bias, "moments": moments[:COUNT]}
        return given | self._scale_and_leak() | self._plain_table() | {"reciprocal": self._reciprocal()}

    def _table(self, moments: Tensor) -> dict[str, Tensor]:
        """The table as `forward` made it: products of two f32 are exact in f64, so that roundings are the same."""
        assert self.norming is not None
        mean, var = moments[:COUNT]
        reciprocal = 1.0 / torch.sqrt(var + self.norming.eps)
        scale, leak = self._scale_and_leak().values()
        arrays, rows = self._plain_table(), self.population.rows
        values = {
            "shift": mean,
            "gain": self.norming.weight.double() * reciprocal * scale,
            "offset": self.norming.bias.double() * scale + leak,
        }
        for name, value in values.items():
            arrays["table"][rows.index(name)] = value
        return arrays | {"reciprocal": reciprocal}

    def _plain_table(self) -> dict[str, Tensor]:
        """A table with the rows that come from no batch norm; none where the kernels have none."""
        if not self.population.rows:
            return {}
        table = self.take("table", (len(self.population.rows), self.x.shape[-1]), torch.float32)
        self.put_numbers(table)
        return {"table": table}

    def _scale_and_leak(self) -> dict[str, Tensor]:
        return {"scale": self.number("input_scale"), "leak": self.number("leak_bias")}

    def _reciprocal(self) -> Tensor:
        return self.take("reciprocal", (self.x.shape[-1],), torch.float64)

    def _sums(self, name: GpuKernel) -> Tensor:
        groups = sum_groups(self.population, name, self._extents)
        return self.take("sums", (groups, 2, self.x.shape[-1]), torch.float64)

    def _empty_y(self) -> Tensor:
        return self.take("y", self.out_shape, self.x.dtype)

    def _launch(
        self, name: GpuKernel, arrays: Mapping[str, Tensor], *, norm: Norm | None = None, count: float = 1.0
    ) -> None:
        population = self.population if norm is None else replace(self.population, norm=norm)
        eps = 0.0 if self.norming is None else self.norming.eps
        self.launch(population, name, self._extents, arrays, {"eps": eps, "count": count})

    @property
    def _values(self) -> int:
        """Values of one channel in x."""
        return self.x.numel() // self.x.shape[-1]

    @property
    def _extents(self) -> Extents:
        _, n, height, width, channels = self.x.shape
        _, _, out_height, out_width, _ = self.out_shape
        return Extents(n=n, height=height, width=width, out_height=out_height, out_width=out_width, channels=channels)
