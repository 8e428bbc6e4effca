"""Emits the backward pass of a layer on the Backward Engine: spike gradients, then Grad, equations 2.4 and 2.5."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from compiler.h2learn.blocks import OutputBlock
from compiler.h2learn.emit_soma import SomaEmitter
from compiler.h2learn.gradient_schedule import GradientSchedule, Origin, RowGroup
from compiler.h2learn.keep import Kept
from compiler.h2learn.pipeline import GridIteration
from compiler.h2learn.quantise import SomaStage
from compiler.h2learn.synchronise import Action, Resource
from compiler.h2learn.tensors import LayerPlan, LayerTensors
from compiler.h2learn.transfers import Mover, Range, Region
from compiler.ir import Graph
from compiler.ir.ops import Lif
from hwmodel.isa import (
    ENGINE_BUFFERS,
    NEURON_FIELDS,
    Buffer,
    Grad,
    GradConvTile,
    GradFcTile,
    Instruction,
    Part,
    Queue,
    ResetKind,
)

DMA = Queue.DMA1  # the memory of the sub-batch that went forward one launch before
_BUFFERS = ENGINE_BUFFERS[Queue.BE]


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientTensors:
    """What the gradient of a layer reads and writes, as indices of the tensor table; views of the last launch."""

    incoming: int  # the gradient of its output: of the loss, or of the sums of the layer behind it
    incoming_mask: int  # -1 without
    weights: int  # of the layer behind it, as (positions, channels, outputs); -1 without
    output: int  # the layer's own spikes
    gradient: int  # of its sums, the result
    gradient_mask: int
    states: tuple[int, ...]  # gradients of the membranes, where time is split
    forward: LayerTensors  # neuron table and kept tensors


class GradientEmitter:
    """Emits one layer's gradient; its only state are the banks that come next."""

    def __init__(
        self,
        number: int,
        graph: Graph,
        plan: LayerPlan,
        kept: Kept,
        schedule: GradientSchedule,
        tensors: GradientTensors,
    ) -> None:
        self._number = number
        self._plan = plan
        self._kept = kept
        self._schedule = schedule
        self._tensors = tensors
        self._stages = plan.constants.stages
        self._grad = _neuron_fields(graph, self._stages)
        self._soma = SomaEmitter(number, plan.layer, plan.constants, kept)
        self._mover = Mover(layer=number, queue=DMA)
        self._source_bank = 0
        self._bank = 0

    def iterations(self) -> Iterator[GridIteration]:
        """All grid iterations; the time chunks of a neuron follow each other backwards."""
        schedule = self._schedule
        for samples in schedule.samples:
            for tile in schedule.tiles:
                for columns in schedule.columns(self._plan.layer.output_type.size("C")):
                    for times in schedule.times:
                        yield from self._block(OutputBlock(tile=tile, columns=columns, times=times, samples=samples))
                        self._bank ^= 1

    def _block(self, output: OutputBlock) -> Iterator[GridIteration]:
        early, work = self._finish(output)
        groups = self._schedule.row_groups()
        if not groups:
            yield GridIteration(early=(self._load_gradient(output), *early), work=work)
            return
        for index, rows in enumerate(groups):
            is_last = index == len(groups) - 1
            bank = self._source_bank
            self._source_bank ^= 1
            loads = (*self._load_source(output, rows, bank), self._load_weights(output, rows, bank))
            if index == 0 and self._skips_outputs():
                loads = (*loads, self._load_mask(output, self._last_stage()))
            compute = self._compute(output, index, rows, bank)
            yield GridIteration(early=(*loads, *(early if is_last else ())), work=(compute, *(work if is_last else ())))

    # -- the spatial part -------------------------------------------------------------------------------------------

    def _load_gradient(self, output: OutputBlock) -> Action:
        """The gradient of the output straight from memory."""
        tile, tensor = output.tile, self._tensors.incoming
        region = self._region(
            output,
            tensor,
            (tile.rows.out_start, tile.rows.out_size),
            (tile.columns.out_start, tile.columns.out_size),
        )
        after: tuple[Resource, ...] = (("tensor", tensor),) if self._schedule.consumer.origin is Origin.HOST else ()
        return self._mover.load(_BUFFERS.psum, self._bank, region, after=after)

    def _load_source(self, output: OutputBlock, rows: RowGroup, bank: int) -> Iterator[Action]:
        """The gradients that the block takes, and the mask of their zeros."""
        tile, consumer = output.tile, self._schedule.consumer
        is_conv = consumer.origin is Origin.CONV
        parts = [(self._tensors.incoming, Part.RESULT)]
        if is_conv:
            parts.append((self._tensors.incoming_mask, Part.FIRST))
        for tensor, part in parts:
            region = Region(
                tensor=tensor,
                t=(output.times.start, output.times.size),
                n=(output.samples.start, output.samples.size),
                y=consumer.source_range(0, tile.rows.out_start, tile.rows.out_size) if is_conv else (0, 1),
                x=consumer.source_range(1, tile.columns.out_start, tile.columns.out_size) if is_conv else (0, 1),
                c=(output.columns.first_source + rows.first, rows.size),
            )
            yield self._mover.load(_BUFFERS.source, bank, region, part)

    def _load_weights(self, output: OutputBlock, rows: RowGroup, bank: int) -> Action:
        consumer, columns, tile = self._schedule.consumer, output.columns, output.tile
        positions = (0, consumer.kernel[0] * consumer.kernel[1])
        first = columns.first
        if consumer.origin is Origin.FC:
            width = self._plan.layer.output_type.size("W") if self._plan.layer.output_type.has("W") else 1
            start = tile.rows.out_start * width + tile.columns.out_start
            positions = (start, tile.rows.out_size * tile.columns.out_size)
        else:
            first %= self._plan.layer.output_type.size("C") // consumer.groups
        region = Region(
            tensor=self._tensors.weights,
            y=positions,
            x=(first, columns.size),
            c=(columns.first_source + rows.first, rows.size),
        )
        return self._mover.load(_BUFFERS.weights, bank, region)

    def _compute(self, output: OutputBlock, index: int, rows: RowGroup, bank: int) -> Action:
        tile, consumer = output.tile, self._schedule.consumer
        reads: tuple[Resource, ...] = ((_BUFFERS.source, bank), (_BUFFERS.weights, bank))
        if consumer.origin is Origin.FC:
            fc = GradFcTile(
                layer=self._number,
                src_bank=bank,
                w_bank=bank,
                dst_bank=self._bank,
                accumulate=index > 0,
                h=tile.rows.out_size,
                w=tile.columns.out_size,
                nt=output.times.size,
                nn=output.samples.size,
                rows=rows.size,
                cols=output.columns.size,
            )
            return self._engine(fc, reads=reads)
        skips = self._skips_outputs()
        masks: tuple[Resource, ...] = ((_BUFFERS.mask, self._bank),) if skips else ()
        first_row, _ = consumer.source_range(0, tile.rows.out_start, tile.rows.out_size)
        first_column, _ = consumer.source_range(1, tile.columns.out_start, tile.columns.out_size)
        conv = GradConvTile(
            layer=self._number,
            src_bank=bank,
            w_bank=bank,
            dst_bank=self._bank,
            accumulate=index > 0,
            kernel_h=consumer.kernel[0],
            kernel_w=consumer.kernel[1],
            stride_h=consumer.stride[0],
            stride_w=consumer.stride[1],
            h=tile.rows.out_size,
            w=tile.columns.out_size,
            top=tile.rows.out_start + consumer.padding[0] - consumer.stride[0] * first_row,
            left=tile.columns.out_start + consumer.padding[1] - consumer.stride[1] * first_column,
            nt=output.times.size,
            nn=output.samples.size,
            rows=rows.size,
            cols=output.columns.size,
            out_sparsity=skips,
            mask_part=Part.FIRST + self._last_stage() if skips else Part.RESULT,
        )
        return self._engine(conv, reads=(*reads, *masks))

    def _skips_outputs(self) -> bool:
        """Whether the mask of equation 3.1 stands at the resolution of the layer's output: a neuron comes last."""
        layer = self._plan.layer
        ends_in_pool = layer.pool2 is not None and layer.neuron2 is None
        is_conv = self._schedule.consumer.origin is Origin.CONV
        return is_conv and not ends_in_pool and self._kept.neuron(self._last_stage()) is not None

    def _last_stage(self) -> int:
        return len(self._stages) - 1

    # -- Grad ---------------------------------------------------------------------------------------------------------

    def _finish(self, output: OutputBlock) -> tuple[tuple[Action, ...], tuple[Action, ...]]:
        """What Grad needs, loaded ahead; then Grad with the membranes' gradients on their way through memory."""
        bank, columns = self._bank, output.columns
        table = Region(
            tensor=self._tensors.forward.neuron,
            y=(0, len(self._stages)),
            x=(0, NEURON_FIELDS),
            c=(columns.first, columns.size),
        )
        early = (self._mover.load(_BUFFERS.neuron, bank, table), *self._load_kept(output))
        split = len(self._schedule.times) > 1
        state_in = split and output.times is not self._schedule.times[0]
        state_out = split and output.times is not self._schedule.times[-1]
        states: tuple[Resource, ...] = tuple((_BUFFERS.state, stage) for stage in range(len(self._stages)))
        work: list[Action] = []
        if state_in:
            work += [self._mover.load(_BUFFERS.state, k, self._state(output, k)) for k in range(len(states))]
        reads = ((_BUFFERS.neuron, bank), (_BUFFERS.out, bank), (Buffer.BE_M, bank), *(states if state_in else ()))
        writes = ((_BUFFERS.psum, bank), (_BUFFERS.mask, bank), *(states if state_out else ()))
        instructions = (*self._soma.windows(output), self._grad_instruction(output, state_in, state_out))
        work += [
            Action(queue=Queue.BE, instruction=instruction, reads=reads, writes=writes) for instruction in instructions
        ]
        if state_out:
            work += [self._mover.store(_BUFFERS.state, k, self._state(output, k)) for k in range(len(states))]
        rows, span = output.tile.rows, output.tile.columns
        y, x = (rows.start, rows.size), (span.start, span.size)
        result = self._region(output, self._tensors.gradient, y, x)
        mask = self._region(output, self._tensors.gradient_mask, y, x)
        work.append(self._mover.store(_BUFFERS.psum, bank, result))
        work.append(self._mover.store(_BUFFERS.mask, bank, mask))
        return early, tuple(work)

    def _load_kept(self, output: OutputBlock) -> Iterator[Action]:
        bank, kept, tensors = self._bank, self._kept, self._tensors.forward.kept
        early_mask = self._last_stage() if self._skips_outputs() else -1
        for neuron in kept.neurons:
            stage = neuron.stage
            if stage != early_mask:
                yield self._load_mask(output, stage)
            if neuron.membrane:
                region = self._stage(output, tensors.membranes[stage], stage)
                yield self._mover.load(Buffer.BE_M, bank, region, Part.FIRST + stage)
            if neuron.spikes and not (stage == 0 and kept.first_spikes):
                region = self._stage(output, self._tensors.output, stage)
                yield self._mover.load(_BUFFERS.out, bank, region, Part.FIRST + stage)
        if kept.first_spikes:
            yield self._mover.load(_BUFFERS.out, bank, self._stage(output, tensors.first_spikes, 0), Part.FIRST)
        if kept.winners:
            tile = output.tile
            region = self._region(
                output, tensors.winners, (tile.rows.start, tile.rows.size), (tile.columns.start, tile.columns.size)
            )
            yield self._mover.load(_BUFFERS.mask, bank, region, Part.WINNERS)

    def _load_mask(self, output: OutputBlock, stage: int) -> Action:
        region = self._stage(output, self._tensors.forward.kept.masks[stage], stage)
        return self._mover.load(_BUFFERS.mask, self._bank, region, Part.FIRST + stage)

    def _grad_instruction(self, output: OutputBlock, state_in: bool, state_out: bool) -> Grad:
        tile = output.tile
        pool1, pool2 = self._soma.pool_kinds()
        first, second = (*self._grad, _Neuron(), _Neuron())[:2]
        return Grad(
            layer=self._number,
            bank=self._bank,
            neuron_bank=self._bank,
            t0=output.times.start,
            nt=output.times.size,
            nn=output.samples.size,
            h=tile.rows.out_size,
            w=tile.columns.out_size,
            out_h=tile.rows.size,
            out_w=tile.columns.size,
            cols=output.columns.size,
            present1=len(self._grad) > 0,
            reset1=first.reset,
            fire1=first.fire,
            detach1=first.detach,
            scale1=first.scale,
            eta1=first.eta_bits,
            present2=len(self._grad) > 1,
            reset2=second.reset,
            fire2=second.fire,
            detach2=second.detach,
            scale2=second.scale,
            eta2=second.eta_bits,
            pool1=pool1,
            pool2=pool2,
            state_in=state_in,
            state_out=state_out,
        )

    def _region(self, output: OutputBlock, tensor: int, y: Range, x: Range) -> Region:
        return Region(
            tensor=tensor,
            t=(output.times.start, output.times.size),
            n=(output.samples.start, output.samples.size),
            y=y,
            x=x,
            c=(output.columns.first, output.columns.size),
        )

    def _stage(self, output: OutputBlock, tensor: int, stage: int) -> Region:
        return self._region(output, tensor, *self._soma.stage_region(output, stage))

    def _state(self, output: OutputBlock, stage: int) -> Region:
        y, x = self._soma.stage_region(output, stage)
        columns = output.columns
        return Region(
            tensor=self._tensors.states[stage],
            n=(output.samples.start, output.samples.size),
            y=y,
            x=x,
            c=(columns.first, columns.size),
        )

    def _engine(self, instruction: Instruction, *, reads: tuple[Resource, ...]) -> Action:
        return Action(queue=Queue.BE, instruction=instruction, reads=reads, writes=((_BUFFERS.psum, self._bank),))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Neuron:
    """The fields of one neuron in the Grad instruction."""

    reset: ResetKind = ResetKind.NONE
    fire: bool = False
    detach: bool = False
    scale: bool = False
    eta_bits: int = 0


def _neuron_fields(graph: Graph, stages: tuple[SomaStage, ...]) -> tuple[_Neuron, ...]:
    return tuple(_neuron_of(graph, stage) for stage in stages)


def _neuron_of(graph: Graph, stage: SomaStage) -> _Neuron:
    op = graph.node(stage.node).op if stage.node else None
    eta = np.float16(op.surrogate.scale) if isinstance(op, Lif) else np.float16(0)
    return _Neuron(
        reset=ResetKind(stage.reset),
        fire=stage.fire,
        detach=isinstance(op, Lif) and op.detach_reset,
        scale=stage.has_scale,
        eta_bits=int(eta.view(np.uint16)),
    )
