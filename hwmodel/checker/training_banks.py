"""Checks what stands in the banks for the instructions of training."""

from __future__ import annotations

import numpy as np

from hwmodel.checker.banks import BankError, BankRules, Content, Place, limit, name_of, part_of
from hwmodel.checker.memory import Box, store_box
from hwmodel.isa import (
    ENGINE_BUFFERS,
    GRADIENT_BUFFERS,
    NEURON_FIELDS,
    AddGradient,
    Buffer,
    Grad,
    GradConvTile,
    GradFcTile,
    Load,
    OuterTile,
    Part,
    PoolKind,
    Queue,
    ResetKind,
    SgdStep,
    Store,
    UpdateFcTile,
    UpdateTile,
)
from hwmodel.program import Format, Program, Role

_BE = ENGINE_BUFFERS[Queue.BE]
_STREAMS = (Buffer.BE_GRAD, Buffer.WU_GRAD, Buffer.WU_WEIGHT, Buffer.WU_MOMENTUM)  # changed on chip, then put back


class TrainingRules:
    """Effects of training instructions on the banks; raises BankError where a need is not met."""

    def __init__(self, banks: BankRules, program: Program) -> None:
        self._banks = banks
        self._program = program
        self._config = program.config
        self._origins: dict[Place, tuple[int, Box]] = {}  # tensor and region that a bank was loaded from
        self._untouched: set[Place] = set()  # streams that no unit has changed yet
        self._added: dict[Place, int] = {}  # channels of weight gradients that went to memory

    def loaded(self, load: Load) -> None:
        """Remember where it comes from."""
        place = part_of(load.buffer, load.bank, load.part)
        self._origins[place] = (load.tensor, store_box(load))
        if load.buffer in _STREAMS:
            self._untouched.add(place)

    def stored(self, store: Store) -> None:
        """A stream goes back to where it came from, changed."""
        if store.buffer not in _STREAMS:
            return
        place = part_of(store.buffer, store.bank, store.part)
        if place in self._untouched:
            raise BankError(f"stores what no unit has changed in {place[0]}")
        if self._origins.get(place) != (store.tensor, store_box(store)):
            raise BankError(f"stores a region of {place[0]} that was not loaded from there")

    def grad_conv_tile(self, tile: GradConvTile) -> None:
        """Gradients with their mask, weights, the mask of the outputs, partial sums."""
        source = self._expect((_BE.source, tile.src_bank), Format.FP16, (tile.nt, tile.nn, None, None, tile.rows))
        for extent, kernel, stride, size, top, what in (
            (source.h, tile.kernel_h, tile.stride_h, tile.h, tile.top, "rows"),
            (source.w, tile.kernel_w, tile.stride_w, tile.w, tile.left, "columns"),
        ):
            first, end = -((kernel - 1 - top) // stride), (size - 1 + top) // stride + 1
            if first != 0 or max(end, 1) != extent:  # one row of zeros where no output takes any
                raise BankError(f"takes {what} {first} to {end} of gradients, finds {source}")
        region = (tile.nt, tile.nn, source.h, source.w, tile.rows)
        mask = part_of(_BE.source, tile.src_bank, Part.FIRST)
        self._expect(mask, Format.S1, region)
        self._same_region(mask, (_BE.source, tile.src_bank), "tnyxc")
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
        self._banks.side_by_side(Queue.BE, 1, grad.pool1, grad.out_h, grad.out_w)
        self._banks.side_by_side(Queue.BE, 2, grad.pool2, *first)
        sizes = (first, last)
        neurons = ((grad.fire1, grad.reset1, grad.detach1), (grad.fire2, grad.reset2, grad.detach2))
        taken: list[Place] = []
        for stage, (fire, reset, detach) in enumerate(neurons[:stages]):
            if fire:
                shape = (*maps, *sizes[stage], grad.cols)
                taken += self._kept(bank, Part.FIRST + stage, shape, hard=reset is ResetKind.HARD, detach=detach)
        if grad.pool2 is PoolKind.MAX:
            taken.append(part_of(_BE.out, bank, Part.FIRST))
            self._expect(taken[-1], Format.S1, (*maps, *first, grad.cols))
        full = (*maps, grad.out_h, grad.out_w, grad.cols)
        if grad.pool1 is PoolKind.MAX:
            taken.append(part_of(_BE.mask, bank, Part.WINNERS))
            self._expect(taken[-1], Format.S1, full)
        for stage in range(stages):
            state = (1, grad.nn, *sizes[stage], grad.cols)
            if grad.state_in:
                self._expect((_BE.state, stage), Format.FP16, state)
            if grad.state_out:
                self._banks.put((_BE.state, stage), _content(Format.FP16, state))
        self._check_regions(taken, (_BE.neuron, grad.neuron_bank))
        for place in {*taken, (_BE.psum, bank)}:  # sums and what was kept are used once
            del self._banks.contents[place]
        self._banks.put((_BE.psum, bank), _content(Format.FP16, full))
        self._banks.put((_BE.mask, bank), _content(Format.S1, full))

    def _kept(self, bank: int, part: int, shape: tuple[int, ...], *, hard: bool, detach: bool) -> list[Place]:
        """What the rule of a neuron reads of the forward pass."""
        taken = [part_of(_BE.mask, bank, part)]
        if hard:
            taken.append(part_of(_BE.out, bank, part))
        for place in taken:
            self._expect(place, Format.S1, shape)
        if hard and not detach:
            taken.append(part_of(Buffer.BE_M, bank, part))
            form = self._banks.need(taken[-1]).format
            self._expect(taken[-1], Format.MCOMP if form is Format.MCOMP else Format.FP16, shape)
        return taken

    def _check_regions(self, taken: list[Place], neuron: Place) -> None:
        """What was kept of a stage is of the same elements, of all stages of the same steps, samples and channels."""
        for place in taken:
            self._same_region(place, taken[0], "tnc")
            self._same_region(place, neuron, "c")
            for other in taken:
                if other[1] == place[1]:
                    self._same_region(place, other, "yx")

    def _same_region(self, place: Place, other: Place, axes: str) -> None:
        """Refuse two loads whose regions differ along some axes, as a mask and what it masks."""
        (tensor, box), (other_tensor, wanted) = self._origin(place), self._origin(other)
        for axis in axes:
            at = "tnyxc".index(axis)
            if box[at] != wanted[at]:
                names = [self._program.tensors[index].name for index in (tensor, other_tensor)]
                raise BankError(f"takes {names[0]} at {axis} {box[at][0]}, {names[1]} at {wanted[at][0]}")

    def _origin(self, place: Place) -> tuple[int, Box]:
        if place not in self._origins:
            raise BankError(f"takes {name_of(place)}, which was not loaded")
        return self._origins[place]

    def update_tile(self, tile: UpdateTile) -> None:
        """Spikes, gradients, and the weights' gradients on chip."""
        region = ((tile.h - 1) * tile.stride_h + tile.kernel_h, (tile.w - 1) * tile.stride_w + tile.kernel_w)
        buffers = GRADIENT_BUFFERS[Queue.WUE]
        self._expect((buffers.source, tile.src_bank), Format.S1, (tile.nt, tile.nn, *region, tile.channels))
        self._update_array(tile.nt, tile.cols)
        gradients = (tile.nt, tile.nn, tile.h, tile.w, tile.cols)
        self._expect((buffers.gradient, tile.gm_bank), Format.FP16, gradients)
        self._same_region((buffers.gradient, tile.gm_bank), (buffers.source, tile.src_bank), "tn")
        self._weight_sum(buffers.psum, tile, tile.kernel_h * tile.kernel_w, tile.channels)

    def update_fc_tile(self, tile: UpdateFcTile) -> None:
        """Spikes, gradients, and the weights' gradients on chip."""
        buffers = GRADIENT_BUFFERS[Queue.WUE]
        source = (buffers.source, tile.src_bank)
        self._expect(source, Format.S1, (tile.nt, tile.nn, 1, 1, tile.inputs), flat=True)
        self._update_array(tile.nt, tile.cols)
        self._expect((buffers.gradient, tile.gm_bank), Format.FP16, (tile.nt, tile.nn, 1, 1, tile.cols))
        self._same_region((buffers.gradient, tile.gm_bank), source, "tn")
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
        self._same_region((buffers.gradient, tile.gm_bank), place, "n" if tile.hold else "tn")
        self._weight_sum(buffers.psum, tile, tile.kernel_h * tile.kernel_w, tile.channels)

    def add_gradient(self, queue: Queue, add: AddGradient) -> None:
        """A slice of the sums on chip, and the stream that takes it."""
        buffers = GRADIENT_BUFFERS[queue]
        source = part_of(buffers.psum, add.psum_bank, add.part)
        psum = self._banks.need(source)
        end = add.first + add.count
        if add.first != self._added.get(source, 0) or end > psum.w:
            raise BankError(f"adds channels {add.first} to {end} of {psum.w}, not those that come next")
        self._added[source] = end
        place, shape = (buffers.stream, add.stream_bank), (1, 1, psum.h, add.count, psum.nc)
        self._expect(place, Format.FP16, shape)
        tensor = self._program.tensors[self._origin(place)[0]]
        if tensor.role is not Role.WEIGHT_GRADIENT:
            raise BankError(f"adds to {tensor.name}, which is {tensor.role}")
        self._put_back(place, _content(Format.FP16, shape))

    def sgd_step(self, step: SgdStep) -> None:
        """Gradient, weight and momentum of the same shape; all three are changed."""
        places: list[Place] = [(Buffer.WU_GRAD, step.gradient_bank), (Buffer.WU_WEIGHT, step.weight_bank)]
        if step.has_momentum:
            places.append((Buffer.WU_MOMENTUM, step.momentum_bank))
        contents = [self._banks.need(place) for place in places]
        if step.batch_group < 1:
            raise BankError("divides by a batch group of 0")
        numbers = np.array((step.learning_rate, step.momentum, step.weight_decay, step.inverse_loss_scale), np.uint32)
        if not np.isfinite(numbers.view(np.float32)).all() or not numbers.view(np.float32)[3] > 0:
            raise BankError("has a number that is not finite, or no loss scale")
        self._check_parameter(places)
        for place, content in zip(places, contents, strict=True):
            if content != contents[0] or content.format is not Format.FP16:
                raise BankError(f"needs {contents[0]}, finds {content}")
            self._put_back(place, content)

    def _check_parameter(self, places: list[Place]) -> None:
        """The streams hold the same region of one parameter."""
        tensors = self._program.tensors
        names = [tensors[self._origin(place)[0]].name for place in places]
        training = self._program.training
        known = () if training is None else training.parameters
        wanted = [[t.gradient, t.tensor, *([t.momentum] if t.momentum else [])] for t in known]
        if names not in wanted or len({self._origins[place][1] for place in places}) > 1:
            raise BankError(f"updates regions of {', '.join(names)}, which are not those of one parameter")

    def _put_back(self, place: Place, content: Content) -> None:
        self._banks.put(place, content)
        self._untouched.discard(place)

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
        shapes = {Part.RESULT: (1, 1, positions, channels, tile.cols)}
        if tile.bias:
            shapes[Part.FIRST] = (1, 1, 1, 1, tile.cols)
        for part, shape in shapes.items():
            place = part_of(buffer, tile.dst_bank, part)
            self._sum(place, shape, tile.accumulate)
            self._added[place] = 0

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
