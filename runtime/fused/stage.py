"""Executes one stage, forward and backward, on plain tensors: kernels for the neurons, torch for the layers."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compiler.fused.plan import Part
from compiler.fused.population import Activation, Norm, Population
from compiler.fused.program import Layer, StageProgram, numbers
from compiler.fused.spikes.costs import SpikeKernels
from compiler.fused.spikes.counts import counts_of
from runtime.fused.arena import Arena
from runtime.fused.gpu_neurons import GpuNeuronsRun
from runtime.fused.layers import layer_forward, layer_grad_input, layer_grad_parameters
from runtime.fused.neurons import AllReduce, MakeRun, NeuronsRun, Norming, Outputs, Run
from runtime.fused.pooling import as_maps, images, pool_backward, pool_forward
from runtime.fused.spikes.counts import pack_counts
from runtime.fused.spikes.launch import Take
from runtime.fused.spikes.stage_layers import SpikeBits, StageLayers


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensors:
    """What a stage works on, see `StageProgram`; x is (T * N, C, H, W) or (T * N, C), without T if repeated."""

    x: Tensor
    parameters: Sequence[Tensor]
    buffers: Sequence[Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradients:
    """Of a stage's input and parameters; None where none was asked for."""

    x: Tensor | None
    parameters: list[Tensor | None]


def keeps_bits(program: StageProgram, x: Tensor) -> bool:
    """Whether a stage keeps its spikes as bits for the backward pass."""
    return program.kernels is not SpikeKernels.OFF and x.dtype == torch.float32 and x.device.type == "cpu"


class StageRun:
    """One execution of a stage; values between its parts are contiguous (T, N, H, W, C)."""

    def __init__(
        self,
        program: StageProgram,
        tensors: Tensors,
        *,
        training: bool,
        arena: Arena,
        name: str,
        all_reduce: AllReduce | None = None,
    ) -> None:
        self._program, self._tensors = program, tensors
        self._arena, self._name, self._all_reduce = arena, name, all_reduce
        self._direction = "forward"
        activation = Activation.BF16 if tensors.x.dtype == torch.bfloat16 else Activation.F32
        self._parts: tuple[Part, ...] = tuple(
            program.part(index, training=training, activation=activation) for index in range(len(program.parts))
        )

    def forward(self) -> tuple[list[Tensor], Tensor | None, SpikeBits | None]:
        """The layers' results, then the spikes if they leave the stage; the batch norm's moments (3, C); spikes' bits.

        Bits are made where the program's layers may read them, of f32 on a CPU, see `keeps_bits`.
        """
        if not self._parts:
            return [self._layer(at, self._tensors.x) for at in range(len(self._program.layers))], None, None
        if keeps_bits(self._program, self._tensors.x):
            return self._forward_bits()
        maps, moments = self._maps(), None
        for index in range(len(self._parts)):
            maps, found = self._first(index, maps)
            moments = found if index == 0 else moments
        rows = self._rows(maps)
        results = [self._layer(at, rows) for at in range(len(self._program.layers))]
        return [*results, rows] if self._program.spikes else results, moments, None

    def _forward_bits(self) -> tuple[list[Tensor], Tensor | None, SpikeBits]:
        maps, moments, last = self._maps(), None, len(self._parts) - 1
        for index in range(last):
            maps, found = self._first(index, maps)
            moments = found if index == 0 else moments
        run = self._cpu_neurons(last, maps)
        found = run.moments()
        moments = found if last == 0 else moments
        bits, y = self._bits(run, found)
        layers = self._spike_layers(run.out_shape, bits, y)
        results = layers.forward()
        return [*results, layers.spikes()] if self._program.spikes else results, moments, bits

    def _bits(self, run: NeuronsRun, moments: Tensor | None) -> tuple[SpikeBits, Tensor | None]:
        """The last neurons' result as bits; averages, which are numbers first, also as the layers take them."""
        counts, last = counts_of(self._parts[-1]), len(self._parts) - 1
        mask = torch.empty(run.words_shape, dtype=torch.int32) if self._program.masked else None
        if counts is None:
            words = torch.empty(run.words_shape, dtype=torch.int32)
            run.fill(moments, Outputs(words=words, mask=mask))
            return SpikeBits(words, mask), None
        y = self._take(last, "y", run.out_shape)
        run.fill(moments, Outputs(y=y, mask=mask))
        words = torch.empty((counts.planes, *run.words_shape), dtype=torch.int32)
        ones = pack_counts(counts, y, words, functools.partial(self._take, last), self._name)
        return SpikeBits(words, mask, ones), self._rows_like(y)

    def _first(self, index: int, maps: Tensor) -> tuple[Tensor, Tensor | None]:
        """A part's result and its moments."""
        part = self._parts[index]
        if isinstance(part, Population):
            return self._neurons(index, part, maps).first()
        return pool_forward(part, maps), None

    def backward(
        self,
        grads: Sequence[Tensor],
        moments: Tensor | None,
        bits: SpikeBits | None = None,
        *,
        need_x: bool,
        need: Sequence[bool],
    ) -> Gradients:
        """Gradients from those of the results; everything between is computed again from x, but for what bits tell.

        need: of which parameters.
        """
        self._direction = "backward"
        if bits is not None:
            return self._backward_bits(grads, moments, bits, need_x=need_x, need=need)
        found: list[Tensor | None] = [None] * len(need)
        if not self._parts:
            grad = self._grad_rows(grads, self._tensors.x) if need_x else None
            self._layer_gradients(grads, self._tensors.x, need, found)
            return Gradients(x=grad, parameters=found)
        inputs = self._inputs(moments)
        if need_x or (self._program.norm and any(need[:2])):
            grad, y = self._through_parts(grads, inputs, moments, found)
            grad_x = self._as_input(grad)
        else:
            last, grad_x = self._parts[-1], None
            y = (
                pool_forward(last, inputs[-1])
                if not isinstance(last, Population)
                else self._neurons(len(inputs) - 1, last, inputs[-1]).forward(moments)
            )
        self._layer_gradients(grads, self._rows(y), need, found)
        return Gradients(x=grad_x if need_x else None, parameters=found)

    def _backward_bits(
        self, grads: Sequence[Tensor], moments: Tensor | None, bits: SpikeBits, *, need_x: bool, need: Sequence[bool]
    ) -> Gradients:
        found: list[Tensor | None] = [None] * len(need)
        grads = [_laid_out(grad) for grad in grads]
        shape = (*bits.words.shape[-5:-1], self._tensors.x.shape[1])
        layers, count = self._spike_layers(shape, bits), len(self._program.layers)
        grad_x: Tensor | None = None
        if need_x or (self._program.norm and any(need[:2])):
            rows = layers.grad_input(grads[:count])
            if self._program.spikes:
                rows = grads[count].clone() if rows is None else rows.add_(grads[count])
            assert rows is not None
            maps = as_maps(rows if rows.ndim == 4 else rows[:, :, None, None], shape[0])
            grad_x = self._as_input(self._through_populations(maps, moments, found))
        for at, layer in enumerate(self._program.layers):
            first = self._first_parameter(at)
            need_bias = layer.bias and need[first + 1]
            if need[first] or need_bias:
                own = layers.grad_parameters(at, grads[at], need_weight=need[first], need_bias=need_bias)
                found[first : first + 1 + layer.bias] = own[: 1 + layer.bias]
        return Gradients(x=grad_x if need_x else None, parameters=found)

    def _through_populations(self, grad: Tensor, moments: Tensor | None, found: list[Tensor | None]) -> Tensor:
        """The gradient of the maps that the stage takes; the result of the last part is not written again."""
        inputs = self._inputs(moments)
        result: Tensor | None = None
        for index in reversed(range(len(self._parts))):
            part, maps = self._parts[index], inputs[index]
            if not isinstance(part, Population):
                grad = pool_backward(part, maps, grad)
            elif result is None:
                grad, of_norm = self._cpu_neurons(index, maps).backward(moments, grad, None)
            else:
                grad, of_norm = self._neurons(index, part, maps).backward(moments, grad, result)
            if isinstance(part, Population) and of_norm is not None:
                found[0], found[1] = of_norm
            result = maps
        return grad

    def _spike_layers(self, shape: tuple[int, ...], bits: SpikeBits, numbers: Tensor | None = None) -> StageLayers:
        weights = [self._weights(at) for at in range(len(self._program.layers))]
        return StageLayers(self._program, weights, shape, bits, self._take, self._arena, self._name, numbers)

    def _through_parts(
        self, grads: Sequence[Tensor], inputs: list[Tensor], moments: Tensor | None, found: list[Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        """The gradient of the maps that the stage takes, and its last part's result."""
        last = self._parts[-1]
        if isinstance(last, Population):
            y = self._take(len(self._parts) - 1, "y", self._neurons(len(inputs) - 1, last, inputs[-1]).out_shape)
        else:
            y = pool_forward(last, inputs[-1])
        grad, result = self._unrows(self._grad_rows(grads, self._rows_like(y)), y), y
        for index in reversed(range(len(self._parts))):
            part, maps = self._parts[index], inputs[index]
            if isinstance(part, Population):
                grad, of_norm = self._neurons(index, part, maps).backward(moments, grad, result)
                if of_norm is not None:
                    found[0], found[1] = of_norm
            else:
                grad = pool_backward(part, maps, grad)
            result = maps
        return grad, y

    def _inputs(self, moments: Tensor | None) -> list[Tensor]:
        """What each part takes."""
        inputs = [self._maps()]
        for index, part in enumerate(self._parts[:-1]):
            if isinstance(part, Population):
                inputs.append(self._neurons(index, part, inputs[-1]).forward(moments))
            else:
                inputs.append(pool_forward(part, inputs[-1]))
        return inputs

    def _neurons(self, index: int, part: Population, maps: Tensor) -> Run:
        make_run: MakeRun = GpuNeuronsRun if maps.is_cuda else NeuronsRun
        return make_run(*self._neurons_arguments(index, part, maps))

    def _cpu_neurons(self, index: int, maps: Tensor) -> NeuronsRun:
        part = self._parts[index]
        assert isinstance(part, Population)
        return NeuronsRun(*self._neurons_arguments(index, part, maps))

    def _neurons_arguments(
        self, index: int, part: Population, maps: Tensor
    ) -> tuple[Population, Tensor, Mapping[str, Tensor], Norming | None, Take]:
        parameters, buffers = self._tensors.parameters, list(self._tensors.buffers)
        norming = None
        if part.norm is not Norm.NONE:
            norming = Norming(
                weight=parameters[0],
                bias=parameters[1],
                running_mean=buffers[0],
                running_var=buffers[1],
                eps=self._program.eps,
                all_reduce=self._all_reduce,
            )
        return part, maps, self._numbers(index), norming, functools.partial(self._take, index)

    def _numbers(self, wanted: int) -> dict[str, Tensor]:
        """The per-channel numbers of a population, by name."""
        at = 2 if self._program.norm else 0
        for index, part in enumerate(self._parts):
            if isinstance(part, Population):
                names = numbers(part)
                if index == wanted:
                    return dict(zip(names, self._tensors.buffers[at : at + len(names)], strict=True))
                at += len(names)
        return {}

    def _take(self, part: int, role: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        key = (self._name, self._direction, role, part)
        return self._arena.take(key, shape, dtype or self._tensors.x.dtype, self._tensors.x.device)

    def _maps(self) -> Tensor:
        """The stage's input as maps, features as maps of one pixel; with one time step if repeated."""
        x, steps = self._tensors.x, 1 if self._program.repeated else self._program.timesteps
        return as_maps(x if x.ndim == 4 else x[:, :, None, None], steps)

    def _as_input(self, grad: Tensor) -> Tensor:
        rows = images(grad)
        return rows if self._tensors.x.ndim == 4 else rows.flatten(1)

    def _rows(self, maps: Tensor) -> Tensor:
        """The maps as the layers take them: (T * N, C, H, W), or features in C, H, W order."""
        rows = self._rows_like(maps)
        if self._program.flatten and maps.shape[2:4] != (1, 1):
            rows.view(len(rows), maps.shape[4], *maps.shape[2:4]).copy_(images(maps))
        return rows

    def _rows_like(self, maps: Tensor) -> Tensor:
        """Of the shape of `_rows`, with undefined contents where that is a copy."""
        if not self._program.flatten:
            return images(maps) if self._tensors.x.ndim == 4 else maps.flatten(0, 3)
        if maps.shape[2:4] == (1, 1):
            return maps.flatten(0, 1).flatten(1)
        return self._take(len(self._parts), "features", (maps.shape[0] * maps.shape[1], maps[0, 0].numel()))

    def _unrows(self, rows: Tensor, maps: Tensor) -> Tensor:
        """Gradients of rows as gradients of the maps, in memory that may be overwritten."""
        if not self._program.flatten:
            return as_maps(rows if rows.ndim == 4 else rows[:, :, None, None], maps.shape[0])
        if maps.shape[2:4] == (1, 1):
            return rows.contiguous().view(maps.shape)
        grad = self._take(len(self._parts), "grad_maps", tuple(maps.shape))
        images(grad).copy_(rows.view(len(rows), maps.shape[4], *maps.shape[2:4]))
        return grad

    def _grad_rows(self, grads: Sequence[Tensor], rows: Tensor) -> Tensor:
        """The gradient of what the layers take, summed over them; never memory of the caller."""
        total: Tensor | None = None
        for at, layer in enumerate(self._program.layers):
            value = layer_grad_input(layer, _laid_out(grads[at]), rows, self._weights(at)[0])
            total = value if total is None else total.add_(value)
        if self._program.spikes:
            own = grads[len(self._program.layers)]
            total = _laid_out(own, copy=True) if total is None else total.add_(own)
        assert total is not None
        return total

    def _layer_gradients(
        self, grads: Sequence[Tensor], rows: Tensor, need: Sequence[bool], found: list[Tensor | None]
    ) -> None:
        for at, layer in enumerate(self._program.layers):
            first = self._first_parameter(at)
            need_bias = layer.bias and need[first + 1]
            if need[first] or need_bias:
                weight_and_bias = layer_grad_parameters(
                    layer,
                    _laid_out(grads[at]),
                    rows,
                    self._weights(at)[0],
                    need_weight=need[first],
                    need_bias=need_bias,
                )
                found[first : first + 1 + layer.bias] = weight_and_bias[: 1 + layer.bias]

    def _layer(self, at: int, rows: Tensor) -> Tensor:
        return layer_forward(self._program.layers[at], rows, *self._weights(at))

    def _weights(self, at: int) -> tuple[Tensor, Tensor | None]:
        layer, first = self._program.layers[at], self._first_parameter(at)
        return self._tensors.parameters[first], self._tensors.parameters[first + 1] if layer.bias else None

    def _first_parameter(self, at: int) -> int:
        """Where a layer's parameters begin."""
        before: tuple[Layer, ...] = self._program.layers[:at]
        return 2 * self._program.norm + sum(1 + layer.bias for layer in before)


def _laid_out(grad: Tensor, *, copy: bool = False) -> Tensor:
    """Feature maps with the channels last in memory."""
    layout = torch.channels_last if grad.ndim == 4 else torch.contiguous_format
    return grad.clone(memory_format=layout) if copy else grad.contiguous(memory_format=layout)
