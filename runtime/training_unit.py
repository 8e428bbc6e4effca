"""Executes the instructions of training: gradients backwards, weight gradients, the update, the host's part."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np

from hwmodel.checker.banks import part_of
from hwmodel.errors import CompileError, Loc
from hwmodel.isa import (
    ENGINE_BUFFERS,
    GRADIENT_BUFFERS,
    NEURON_FIELDS,
    AddGradient,
    Buffer,
    Grad,
    GradConvTile,
    GradFcTile,
    HostLoss,
    HostUpdate,
    Instruction,
    OuterTile,
    Part,
    PoolKind,
    PoolSetup,
    Queue,
    ResetKind,
    SgdStep,
    UpdateFcTile,
    UpdateTile,
)
from hwmodel.program import Program
from runtime.engines import F16, U8, Engines, GradNeuron, GradPlan, GradWindow, KeptStage, Sgd, Window
from runtime.grad_call import GradCall, over_time
from runtime.memory import Bank, Memory, RegionCache, Values
from runtime.soma_unit import pool_from

_BE = ENGINE_BUFFERS[Queue.BE]
_WUE = GRADIENT_BUFFERS[Queue.WUE]


class HostActions(Protocol):
    """What the host computes while a program runs."""

    def loss_gradient(self, output: Values) -> F16:
        """The scaled gradient of the loss. Shapes: the program's output tensor, and the same."""
        ...

    def updated(self, weight: str, weights: F16, gradient: F16) -> F16:
        """New weights of a tensor, or of the row that the gradient is of. Shapes: (y, x, c), all the same."""
        ...


@dataclass(slots=True)
class Updates:
    """Counts of an update, by layer."""

    moved: dict[int, int]  # weights that changed
    lost: dict[int, int]  # weights whose step is not 0 and rounded away


class TrainingUnit:
    """Backward and Weight Update Engine, SGD unit and host, on the banks and memories of a machine."""

    def __init__(
        self,
        program: Program,
        engines: Engines,
        memory: Memory,
        banks: MutableMapping[tuple[Buffer, int], Bank],
        cache: RegionCache,
    ) -> None:
        self._program = program
        self._engines = engines
        self._memory = memory
        self._banks = banks
        self._cache = cache
        self._setups: dict[tuple[Queue, int], PoolSetup] = {}
        self._host: HostActions | None = None
        self.updates = Updates({}, {})
        self.learning_rate: float | None = None  # that the host wrote into the update instructions
        self.batch_group: int | None = None

    def begin(self, host: HostActions | None) -> None:
        """A launch begins, with that host."""
        self._host = host
        self.updates = Updates({}, {})

    def set_pool(self, queue: Queue, setup: PoolSetup) -> None:
        """Windows for the next Grad instructions."""
        self._setups[queue, setup.slot] = setup

    def grad_conv_tile(self, queue: Queue, tile: GradConvTile) -> None:
        """One grid iteration of a convolution's input gradient."""
        window = GradWindow(
            kernel_h=tile.kernel_h,
            kernel_w=tile.kernel_w,
            stride_h=tile.stride_h,
            stride_w=tile.stride_w,
            out_h=tile.h,
            out_w=tile.w,
            top=tile.top,
            left=tile.left,
        )
        wanted = self._u8(part_of(_BE.mask, tile.dst_bank, tile.mask_part)) if tile.out_sparsity else None
        self._engines.accumulate_gradient(
            self._f16((_BE.source, tile.src_bank)),
            self._u8(part_of(_BE.source, tile.src_bank, Part.FIRST)),
            self._f16((_BE.weights, tile.w_bank))[0],
            wanted,
            window,
            self._sum(tile.dst_bank, (tile.nt * tile.nn, tile.h, tile.w, tile.cols), tile.accumulate),
            not tile.accumulate,
        )

    def grad_fc_tile(self, queue: Queue, tile: GradFcTile) -> None:
        """One grid iteration of a linear layer's input gradient."""
        maps = tile.nt * tile.nn
        psum = self._sum(tile.dst_bank, (maps, tile.h, tile.w, tile.cols), tile.accumulate)
        self._engines.accumulate_fc_gradient(
            self._f16((_BE.source, tile.src_bank)).reshape(maps, tile.rows),
            self._f16((_BE.weights, tile.w_bank))[0],
            psum.reshape(maps, tile.h * tile.w, tile.cols),
            not tile.accumulate,
        )

    def grad(self, queue: Queue, grad: Grad) -> None:
        """The neurons and pools of a tile, backwards.

        Raises: CompileError naming the layer where a gradient leaves FP16.
        """
        call = self._grad_call(queue, grad)
        result = call.run(self._engines, 0)
        if not result.finite:
            late = next(t for t in reversed(range(grad.nt)) if not call.run(self._engines, t).finite)
            raise self._overflow(grad.layer, "a membrane potential gradient", f" at time step {grad.t0 + late}")
        self._banks[_BE.psum, grad.bank] = Bank(result.gradient)
        self._banks[_BE.mask, grad.bank] = Bank(result.mask)
        if grad.state_out:
            for stage, state in enumerate(result.carry):
                self._banks[_BE.state, stage] = Bank(state)

    def update_tile(self, queue: Queue, tile: UpdateTile) -> None:
        """One grid iteration of a convolution's weight gradients."""
        window = Window(
            kernel_h=tile.kernel_h,
            kernel_w=tile.kernel_w,
            stride_h=tile.stride_h,
            stride_w=tile.stride_w,
            out_h=tile.h,
            out_w=tile.w,
        )
        source = self._banks[_WUE.source, tile.src_bank]
        patterns = cast(
            U8,
            self._cache.get(
                ("update", source.key, window),
                lambda: self._engines.update_patterns(cast(U8, source.values), window),
            ),
        )
        g = self._f16((_WUE.gradient, tile.gm_bank)).reshape(tile.nt, tile.nn, tile.h, tile.w, tile.cols)
        taps = tile.kernel_h * tile.kernel_w
        psum = self._weight_sum(_WUE.psum, tile, (taps, tile.channels, tile.cols))
        self._engines.accumulate_update(g, patterns, psum, not tile.accumulate)
        if tile.bias:
            ones = np.full((*patterns.shape[:3], 1, 1), 255, np.uint8)
            self._engines.accumulate_update(g, ones, self._bias_sum(_WUE.psum, tile), not tile.accumulate)

    def update_fc_tile(self, queue: Queue, tile: UpdateFcTile) -> None:
        """One grid iteration of a linear layer's weight gradients."""
        g = self._f16((_WUE.gradient, tile.gm_bank)).reshape(tile.nt, tile.nn, tile.cols)
        spikes = self._u8((_WUE.source, tile.src_bank)).reshape(tile.nt, tile.nn, tile.inputs)
        psum = self._weight_sum(_WUE.psum, tile, (1, tile.inputs, tile.cols))
        self._engines.accumulate_update_fc(g, spikes, psum[0], not tile.accumulate)
        if tile.bias:
            ones = np.ones((tile.nt, tile.nn, 1), np.uint8)
            self._engines.accumulate_update_fc(g, ones, self._bias_sum(_WUE.psum, tile)[0], not tile.accumulate)

    def outer_tile(self, queue: Queue, tile: OuterTile) -> None:
        """One grid iteration of the weight gradients of a layer that takes real values."""
        window = Window(
            kernel_h=tile.kernel_h,
            kernel_w=tile.kernel_w,
            stride_h=tile.stride_h,
            stride_w=tile.stride_w,
            out_h=tile.h,
            out_w=tile.w,
        )
        buffers = GRADIENT_BUFFERS[Queue.BE]
        x = self._f16((buffers.source, tile.src_bank))
        g = self._f16((buffers.gradient, tile.gm_bank))
        psum = self._weight_sum(buffers.psum, tile, (tile.kernel_h * tile.kernel_w, tile.channels, tile.cols))
        self._engines.accumulate_outer(x, g, window, psum, not tile.accumulate)
        if tile.bias:
            one = Window(kernel_h=1, kernel_w=1, stride_h=1, stride_w=1, out_h=tile.h, out_w=tile.w)
            ones = np.ones((len(g), tile.h, tile.w, 1), np.float16)
            self._engines.accumulate_outer(ones, g, one, self._bias_sum(buffers.psum, tile), not tile.accumulate)

    def add_gradient(self, queue: Queue, add: AddGradient) -> None:
        """A slice of a sub-batch's weight gradients onto those of the sub-batches before.

        Raises: CompileError naming the layer where a sum leaves FP16.
        """
        buffers = GRADIENT_BUFFERS[queue]
        psum = self._f16(part_of(buffers.psum, add.psum_bank, add.part))
        place = (buffers.stream, add.stream_bank)
        stream = self._f16(place)
        with np.errstate(all="ignore"):
            total = stream + psum[:, add.first : add.first + add.count].reshape(stream.shape)
        if not np.isfinite(total).all():
            raise self._overflow(add.layer, "a weight gradient")
        self._banks[place] = Bank(total)

    def sgd_step(self, queue: Queue, step: SgdStep) -> None:
        """New weights and momentum, and a gradient of zero.

        Raises: CompileError naming the layer where a weight leaves FP16.
        """
        places = ((Buffer.WU_GRAD, step.gradient_bank), (Buffer.WU_WEIGHT, step.weight_bank))
        gradient, weight = (self._f16(place) for place in places)
        buffer = (Buffer.WU_MOMENTUM, step.momentum_bank)
        momentum = self._f16(buffer).ravel() if step.has_momentum else None
        result = self._engines.sgd(weight.ravel(), gradient.ravel(), momentum, self._rule(step))
        if not result.finite:
            raise self._overflow(step.layer, "a weight or its momentum")
        self._banks[places[0]] = Bank(np.zeros_like(gradient))
        self._banks[places[1]] = Bank(result.weight.reshape(weight.shape))
        if result.momentum is not None:
            self._banks[buffer] = Bank(result.momentum.reshape(weight.shape))
        for counts, count in ((self.updates.moved, result.changed), (self.updates.lost, result.lost)):
            counts[step.layer] = counts.get(step.layer, 0) + count

    def host_loss(self, queue: Queue, loss: HostLoss) -> None:
        """The host's gradient of the loss goes to memory."""
        assert self._host is not None
        gradient = self._host.loss_gradient(self._memory.array(loss.output))
        self._memory.array(loss.gradient)[...] = gradient
        self._memory.changed(loss.gradient)

    def host_update(self, queue: Queue, update: HostUpdate) -> None:
        """The host's new weights go to both memories."""
        assert self._host is not None
        gradient = self._memory.array(update.gradient)[0, 0]
        name = self._program.tensors[update.weight].name
        box = tuple(slice(0, size) for size in gradient.shape)
        new = self._host.updated(name, cast(F16, self._memory.array(update.weight, 0)[0, 0][box]), cast(F16, gradient))
        if not np.isfinite(new).all():
            raise self._overflow(update.layer, "a weight")
        for memory in self._memory.copies(update.weight):
            self._memory.array(update.weight, memory)[0, 0][box] = new
            self._memory.changed(update.weight, memory)
        gradient[...] = 0
        self._memory.changed(update.gradient)

    def _rule(self, step: SgdStep) -> Sgd:
        group = self.batch_group or step.batch_group
        inverse = _f32(step.inverse_loss_scale)
        rate = np.float32(self.learning_rate) if self.learning_rate is not None else _f32(step.learning_rate)
        return Sgd(
            learning_rate=float(rate),
            momentum=float(_f32(step.momentum)),
            weight_decay=float(_f32(step.weight_decay)),
            scale=float(np.float32(group * self._program.batch) / inverse),
        )

    def _grad_call(self, queue: Queue, grad: Grad) -> GradCall:
        stages = grad.present1 + grad.present2
        carry: tuple[F16 | None, ...] = (None,) * stages
        if grad.state_in:
            carry = tuple(self._f16((_BE.state, stage)) for stage in range(stages))
        winners = None
        if grad.pool1 is PoolKind.MAX:
            winners = over_time(self._u8(part_of(_BE.mask, grad.bank, Part.WINNERS)), grad)
        return GradCall(
            psum=over_time(self._f16((_BE.psum, grad.bank)), grad),
            plan=self._grad_plan(queue, grad),
            params=self._f16((_BE.neuron, grad.neuron_bank)).reshape(stages, NEURON_FIELDS, grad.cols),
            kept=self._kept(grad),
            carry=carry,
            winners=winners,
            height=grad.out_h,
            width=grad.out_w,
        )

    def _grad_plan(self, queue: Queue, grad: Grad) -> GradPlan:
        pools = [
            None if kind is PoolKind.NONE else pool_from(self._setups[queue, slot], kind)
            for slot, kind in ((1, grad.pool1), (2, grad.pool2))
        ]
        first = GradNeuron(
            reset=grad.reset1,
            fire=grad.fire1,
            detach=grad.detach1,
            has_scale=grad.scale1,
            eta=_eta(grad.eta1),
        )
        second = GradNeuron(
            reset=grad.reset2,
            fire=grad.fire2,
            detach=grad.detach2,
            has_scale=grad.scale2,
            eta=_eta(grad.eta2),
        )
        return GradPlan(
            stage1=first if grad.present1 else None,
            pool1=pools[0],
            pool2=pools[1],
            stage2=second if grad.present2 else None,
        )

    def _kept(self, grad: Grad) -> tuple[KeptStage, ...]:
        """What the rules of the neurons and of a max pooling read of the forward pass."""
        neurons = ((grad.fire1, grad.reset1, grad.detach1), (grad.fire2, grad.reset2, grad.detach2))
        stages = []
        for stage, (fire, reset, detach) in enumerate(neurons[: grad.present1 + grad.present2]):
            part, hard = Part.FIRST + stage, fire and reset is ResetKind.HARD
            over_spikes = stage == 0 and grad.pool2 is PoolKind.MAX
            stages.append(
                KeptStage(
                    spikes=over_time(self._u8(part_of(_BE.out, grad.bank, part)), grad)
                    if hard or over_spikes
                    else None,
                    mask=over_time(self._u8(part_of(_BE.mask, grad.bank, part)), grad) if fire else None,
                    membrane=over_time(self._f16(part_of(Buffer.BE_M, grad.bank, part)), grad)
                    if hard and not detach
                    else None,
                )
            )
        return tuple(stages)

    def _sum(self, bank: int, shape: tuple[int, ...], accumulate: bool) -> F16:
        """The partial sums that a tile accumulates into; fresh ones when it starts them."""
        return self._fresh((_BE.psum, bank), shape, accumulate)

    def _weight_sum(self, buffer: Buffer, tile: UpdateTile | UpdateFcTile | OuterTile, shape: tuple[int, ...]) -> F16:
        return self._fresh((buffer, tile.dst_bank), shape, tile.accumulate)

    def _bias_sum(self, buffer: Buffer, tile: UpdateTile | UpdateFcTile | OuterTile) -> F16:
        return self._fresh(part_of(buffer, tile.dst_bank, Part.FIRST), (1, 1, tile.cols), tile.accumulate)

    def _fresh(self, place: tuple[Buffer, int], shape: tuple[int, ...], accumulate: bool) -> F16:
        if not accumulate:
            self._banks[place] = Bank(np.empty(shape, np.float16))
        return self._f16(place)

    def _f16(self, place: tuple[Buffer, int]) -> F16:
        values = self._banks[place].values
        assert values.dtype == np.float16
        return cast(F16, values)

    def _u8(self, place: tuple[Buffer, int]) -> U8:
        values = self._banks[place].values
        assert values.dtype == np.uint8
        return cast(U8, values)

    def _overflow(self, layer: int, what: str, where: str = "") -> CompileError:
        return CompileError(
            f"{self._program.layers[layer].name}: {what} overflows FP16{where}",
            Loc(self._program.name),
            hint="lower the loss scale or the learning rate",
        )


def _f32(bits: int) -> np.float32:
    return np.uint32(bits).view(np.float32)


def _eta(bits: int) -> float:
    return float(np.uint16(bits).view(np.float16))


TRAINING_RULES: dict[type[Instruction], Callable[..., None]] = {
    GradConvTile: TrainingUnit.grad_conv_tile,
    GradFcTile: TrainingUnit.grad_fc_tile,
    Grad: TrainingUnit.grad,
    UpdateTile: TrainingUnit.update_tile,
    UpdateFcTile: TrainingUnit.update_fc_tile,
    OuterTile: TrainingUnit.outer_tile,
    AddGradient: TrainingUnit.add_gradient,
    SgdStep: TrainingUnit.sgd_step,
    HostLoss: TrainingUnit.host_loss,
    HostUpdate: TrainingUnit.host_update,
}
