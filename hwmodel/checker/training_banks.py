"""Checks what stands in the banks for the instructions of training."""

from __future__ import annotations

from hwmodel.checker.banks import BankError, BankRules, Content, Place, limit, part_of
from hwmodel.config import H2LearnConfig
from hwmodel.isa import (
    ENGINE_BUFFERS,
    GRADIENT_BUFFERS,
    NEURON_FIELDS,
    AddGradient,
    Buffer,
    Grad,
    GradConvTile,
    GradFcTile,
    OuterTile,
    Part,
    PoolKind,
    Queue,
    ResetKind,
    SgdStep,
    UpdateFcTile,
    UpdateTile,
)
from hwmodel.program import Format

_BE = ENGINE_BUFFERS[Queue.BE]


class TrainingRules:
    """Effects of training instructions on the banks; raises BankError where a need is not met."""

    def __init__(self, banks: BankRules, config: H2LearnConfig) -> None:
        self._banks = banks
        self._config = config

    def grad_conv_tile(self, tile: GradConvTile) -> None:
        """Gradients with their mask, weights, the mask of the outputs, partial sums."""
        source = self._expect((_BE.source, tile.src_bank), Format.FP16, (tile.nt, tile.nn, None, None, tile.rows))
        for extent, kernel, stride, size, top, what in (
            (source.h, tile.kernel_h, tile.stride_h, tile.h, tile.top, "rows"),
            (source.w, tile.kernel_w, tile.stride_w, tile.w, tile.left, "columns"),
        ):
            first, last = -((kernel - 1 - top) // stride), (size - 1 + top) // stride
            if first < 0 or last >= extent:
                raise BankError(f"takes {what} {first} to {last + 1} of gradients, finds {source}")
        region = (tile.nt, tile.nn, source.h, source.w, tile.rows)
        self._expect(part_of(_BE.source, tile.src_bank, Part.FIRST), Format.S1, region)
        self._backward_array(tile.rows, tile.cols)
        limit(2 * source.h * source.w, self._config.backward.pe_tile_bytes // 2, "bytes of a PE's tile")
        most = self._config.backward.pe_psum_bytes * self._config.backward.pe_group
        limit(2 * tile.h * tile.w, most, "bytes of partial sums")
        weights = self._banks.need((_BE.weights, tile.w_bank))
        self._banks.weights(weights, tile.kernel_h * tile.kernel_w, tile.cols, tile.rows)
        outputs = (tile.nt, tile.nn, tile.h, tile.w, tile.cols)
        if tile.out_sparsity:
            self._expect(part_of(_BE.mask, tile.dst_bank, tile.mask_part), Format.S1, outputs)
        self._sum((_BE.psum, tile.dst_bank), outputs, tile.accumulate)

    def grad_fc_tile(self, tile: GradFcTile) -> None:
        """Gradients, weights and partial sums."""
        self._expect((_BE.source, tile.src_bank), Format.FP16, (tile.nt, tile.nn, 1, 1, tile.rows))
        self._backward_array(tile.rows, tile.cols)
        self._banks.weights(self._banks.need((_BE.weights, tile.w_bank)), tile.h * tile.w, tile.cols, tile.rows)
        self._sum((_BE.psum, tile.dst_bank), (tile.nt, tile.nn, tile.h, tile.w, tile.cols), tile.accumulate)

    def grad(self, grad: Grad) -> None:
        """All that Grad reads and leaves."""
        bank, maps = grad.bank, (grad.nt, grad.nn)
        self._expect((_BE.psum, bank), Format.FP16, (*maps, grad.h, grad.w, grad.cols))
        stages = grad.present1 + grad.present2
        if not grad.present1:
            raise BankError("has no neuron")
        self._banks.weights(self._banks.need((_BE.neuron, grad.neuron_bank)), stages, NEURON_FIELDS, grad.cols)
        first = self._banks.pooled(Queue.BE, 1, grad.pool1, grad.out_h, grad.out_w)
        last = self._banks.pooled(Queue.BE, 2, grad.pool2, *first)
        if last != (grad.h, grad.w):
            raise BankError(f"walks back from {grad.h} x {grad.w} gradients, its pooling leaves {last[0]} x {last[1]}")
        sizes = (first, last)
        neurons = ((grad.fire1, grad.reset1, grad.detach1), (grad.fire2, grad.reset2, grad.detach2))
        for stage, (fire, reset, detach) in enumerate(neurons[:stages]):
            if fire:
                shape = (*maps, *sizes[stage], grad.cols)
                self._kept(bank, Part.FIRST + stage, shape, hard=reset is ResetKind.HARD, detach=detach)
        if grad.pool2 is PoolKind.MAX:
            self._expect(part_of(_BE.out, bank, Part.FIRST), Format.S1, (*maps, *first, grad.cols))
        full = (*maps, grad.out_h, grad.out_w, grad.cols)
        if grad.pool1 is PoolKind.MAX:
            self._expect(part_of(_BE.mask, bank, Part.WINNERS), Format.S1, full)
        for stage in range(stages):
            state = (1, grad.nn, *sizes[stage], grad.cols)
            if grad.state_in:
                self._expect((_BE.state, stage), Format.FP16, state)
            if grad.state_out:
                self._banks.put((_BE.state, stage), _content(Format.FP16, state))
        del self._banks.contents[_BE.psum, bank]
        self._banks.put((_BE.psum, bank), _content(Format.FP16, full))
        self._banks.put((_BE.mask, bank), _content(Format.S1, full))

    def _kept(self, bank: int, part: int, shape: tuple[int, ...], *, hard: bool, detach: bool) -> None:
        self._expect(part_of(_BE.mask, bank, part), Format.S1, shape)
        if hard:
            self._expect(part_of(_BE.out, bank, part), Format.S1, shape)
        if hard and not detach:
            place = part_of(Buffer.BE_M, bank, part)
            form = self._banks.contents[place].format if place in self._banks.contents else Format.FP16
            self._expect(place, Format.MCOMP if form is Format.MCOMP else Format.FP16, shape)

    def update_tile(self, tile: UpdateTile) -> None:
        """Spikes, gradients, and the weights' gradients on chip."""
        region = ((tile.h - 1) * tile.stride_h + tile.kernel_h, (tile.w - 1) * tile.stride_w + tile.kernel_w)
        buffers = GRADIENT_BUFFERS[Queue.WUE]
        self._expect((buffers.source, tile.src_bank), Format.S1, (tile.nt, tile.nn, *region, tile.channels))
        self._update_array(tile.nt, tile.cols)
        gradients = (tile.nt, tile.nn, tile.h, tile.w, tile.cols)
        self._expect((buffers.gradient, tile.gm_bank), Format.FP16, gradients)
        self._weight_sum(buffers.psum, tile, tile.kernel_h * tile.kernel_w, tile.channels)

    def update_fc_tile(self, tile: UpdateFcTile) -> None:
        """Spikes, gradients, and the weights' gradients on chip."""
        buffers = GRADIENT_BUFFERS[Queue.WUE]
        source = (buffers.source, tile.src_bank)
        self._expect(source, Format.S1, (tile.nt, tile.nn, 1, 1, tile.inputs), flat=True)
        self._update_array(tile.nt, tile.cols)
        self._expect((buffers.gradient, tile.gm_bank), Format.FP16, (tile.nt, tile.nn, 1, 1, tile.cols))
        self._weight_sum(buffers.psum, tile, 1, tile.inputs)

    def outer_tile(self, tile: OuterTile) -> None:
        """Real values, gradients, and the weights' gradients on chip."""
        buffers = GRADIENT_BUFFERS[Queue.BE]
        region = ((tile.h - 1) * tile.stride_h + tile.kernel_h, (tile.w - 1) * tile.stride_w + tile.kernel_w)
        place, steps = (buffers.source, tile.src_bank), 1 if tile.hold else tile.nt
        flat = self._banks.need(place).flat
        self._expect(place, Format.FP16, (steps, tile.nn, *region, tile.channels), flat=flat)
        self._backward_array(tile.channels, tile.cols)
        gradients = (tile.nt, tile.nn, tile.h, tile.w, tile.cols)
        self._expect((buffers.gradient, tile.gm_bank), Format.FP16, gradients)
        self._weight_sum(buffers.psum, tile, tile.kernel_h * tile.kernel_w, tile.channels)

    def add_gradient(self, queue: Queue, add: AddGradient) -> None:
        """A slice of the sums on chip, and the stream that takes it."""
        buffers = GRADIENT_BUFFERS[queue]
        psum = self._banks.need(part_of(buffers.psum, add.psum_bank, add.part))
        limit(add.first + add.count, psum.w, "channels of weight gradients")
        place, shape = (buffers.stream, add.stream_bank), (1, 1, psum.h, add.count, psum.nc)
        self._expect(place, Format.FP16, shape)
        self._banks.put(place, _content(Format.FP16, shape))

    def sgd_step(self, step: SgdStep) -> None:
        """Gradient, weight and momentum of the same shape; all three are changed."""
        places: list[Place] = [(Buffer.WU_GRAD, step.gradient_bank), (Buffer.WU_WEIGHT, step.weight_bank)]
        if step.has_momentum:
            places.append((Buffer.WU_MOMENTUM, step.momentum_bank))
        contents = [self._banks.need(place) for place in places]
        if step.batch_group < 1:
            raise BankError("divides by a batch group of 0")
        for place, content in zip(places, contents, strict=True):
            if content != contents[0] or content.format is not Format.FP16:
                raise BankError(f"needs {contents[0]}, finds {content}")
            self._banks.put(place, content)

    def _backward_array(self, rows: int, cols: int) -> None:
        limit(rows, self._config.backward.rows, "rows")
        limit(cols, self._config.backward.cols, "cols")

    def _update_array(self, steps: int, cols: int) -> None:
        limit(steps, self._config.weight_update.rows, "steps")
        limit(cols, self._config.weight_update.cols, "cols")

    def _sum(self, place: Place, shape: tuple[int, ...], accumulate: bool) -> None:
        content = _content(Format.FP16, shape)
        if accumulate and self._banks.need(place) != content:
            raise BankError(f"accumulates {content} onto {self._banks.contents[place]}")
        self._banks.put(place, content)

    def _weight_sum(
        self, buffer: Buffer, tile: UpdateTile | UpdateFcTile | OuterTile, positions: int, channels: int
    ) -> None:
        self._sum((buffer, tile.dst_bank), (1, 1, positions, channels, tile.cols), tile.accumulate)
        if tile.bias:
            self._sum(part_of(buffer, tile.dst_bank, Part.FIRST), (1, 1, 1, 1, tile.cols), tile.accumulate)

    def _expect(self, place: Place, form: Format, shape: tuple[int | None, ...], *, flat: bool = False) -> Content:
        """The content of a place; None allows any extent."""
        found = self._banks.need(place)
        extents = (found.nt, found.nn, found.h, found.w, found.nc)
        fits = all(want is None or want == got for want, got in zip(shape, extents, strict=True))
        if not fits or found.format is not form or found.flat is not flat:
            raise BankError(f"needs {form} {shape} in {place[0]}, finds {found}")
        return found


def _content(form: Format, shape: tuple[int, ...]) -> Content:
    nt, nn, h, w, nc = shape
    return Content(format=form, nt=nt, nn=nn, h=h, w=w, nc=nc)
