"""Emits the forward pass: the loops of each layer become instructions in program order."""

from __future__ import annotations

from collections.abc import Iterator

from compiler.h2learn.blocks import OutputBlock, output_blocks
from compiler.h2learn.emit_soma import SomaEmitter
from compiler.h2learn.keep import NOTHING, Kept
from compiler.h2learn.partition_luts import RowBlock
from compiler.h2learn.pipeline import GridIteration, pipelined
from compiler.h2learn.synchronise import Action, Resource
from compiler.h2learn.tensors import LayerPlan, LayerTensors
from compiler.h2learn.transfers import Mover, Range, Region
from compiler.ir.ops import Conv2d
from hwmodel.config import H2LearnConfig
from hwmodel.isa import (
    ENGINE_BUFFERS,
    NEURON_FIELDS,
    ConvTile,
    FcTile,
    Instruction,
    LutMode,
    LutProgram,
    Part,
    Queue,
)

DMA = Queue.DMA0  # the memory of the sub-batch; the machine may run a program with Mem 0 and Mem 1 swapped
LUT: Resource = ("lut", 0)


class LayerEmitter:
    """Emits one layer; its only state are the banks that come next."""

    def __init__(
        self,
        number: int,
        plan: LayerPlan,
        tensors: LayerTensors,
        config: H2LearnConfig,
        kept: Kept = NOTHING,
    ) -> None:
        self._number = number
        self._layer = plan.layer
        self._schedule = plan.schedule
        self._tensors = tensors
        self._config = config
        self._kept = kept
        self._buffers = ENGINE_BUFFERS[plan.schedule.engine]
        self._soma = SomaEmitter(number, plan.layer, plan.constants, kept)
        self._stages = len(plan.constants.stages)
        self._mover = Mover(layer=number, queue=DMA)
        self._source_bank = 0
        self._output_bank = 0

    def actions(self) -> Iterator[Action]:
        """The layer in program order."""
        for group in pipelined(self._grid()):
            yield from group

    def _grid(self) -> Iterator[GridIteration]:
        for output in output_blocks(self._layer, self._schedule):
            yield from self._iterations(output)
            self._output_bank ^= 1

    def _iterations(self, output: OutputBlock) -> Iterator[GridIteration]:
        early, work = self._finish(output)
        blocks = self._schedule.partition.blocks
        if not blocks:
            yield GridIteration(early=(self._load_soma_input(output), *early), work=work)
            return
        for index, block in enumerate(blocks):
            is_last = index == len(blocks) - 1
            bank = self._source_bank
            self._source_bank ^= 1
            loads = (
                self._load_source(output, block, bank),
                self._load_weights(output, block, bank),
            )
            compute = tuple(self._compute(output, index, block, bank))
            yield GridIteration(
                early=(*loads, *(early if is_last else ())), work=(*compute, *(work if is_last else ()))
            )

    def _load_source(self, output: OutputBlock, block: RowBlock, bank: int) -> Action:
        layer, split, tile = self._layer, self._schedule.partition, output.tile
        op = layer.synapse.op if layer.synapse is not None else None
        region = Region(
            tensor=self._tensors.source,
            t=(0, 1) if layer.held else (output.times.start, output.times.size),
            n=(output.samples.start, output.samples.size),
            y=(0, 1)
            if not isinstance(op, Conv2d)
            else (
                tile.rows.start * op.stride[0] - op.padding[0] + block.kernel_row,
                (tile.rows.size - 1) * op.stride[0] + split.kernel_rows_of(block),
            ),
            x=(0, 1)
            if not isinstance(op, Conv2d)
            else (
                tile.columns.start * op.stride[1] - op.padding[1],
                (tile.columns.size - 1) * op.stride[1] + split.kernel[1],
            ),
            c=(output.columns.first_source + block.first_channel, block.channels),
            flat=not isinstance(op, Conv2d),
        )
        return self._mover.load(self._buffers.source, bank, region)

    def _load_weights(self, output: OutputBlock, block: RowBlock, bank: int) -> Action:
        split, columns = self._schedule.partition, output.columns
        positions = (0, split.kernel[0] * split.kernel[1])
        if self._schedule.engine is Queue.BE:
            positions = (block.kernel_row * split.kernel[1], split.kernel_rows_of(block) * split.kernel[1])
        region = Region(
            tensor=self._tensors.weights,
            y=positions,
            x=(block.first_channel, block.channels),
            c=(columns.first, columns.size),
        )
        return self._mover.load(self._buffers.weights, bank, region)

    def _load_soma_input(self, output: OutputBlock) -> Action:
        tile = output.tile
        region = self._output_region(
            output, self._tensors.source, (tile.rows.start, tile.rows.size), (tile.columns.start, tile.columns.size)
        )
        return self._mover.load(self._buffers.psum, self._output_bank, region)

    def _output_region(self, output: OutputBlock, tensor: int, y: Range, x: Range) -> Region:
        """Rows and columns of a tensor over the block's steps, samples and channels."""
        return Region(
            tensor=tensor,
            t=(output.times.start, output.times.size),
            n=(output.samples.start, output.samples.size),
            y=y,
            x=x,
            c=(output.columns.first, output.columns.size),
        )

    def _compute(self, output: OutputBlock, index: int, block: RowBlock, bank: int) -> Iterator[Action]:
        schedule, buffers = self._schedule, self._buffers
        source: Resource = (buffers.source, bank)
        weights: Resource = (buffers.weights, bank)
        psum = (buffers.psum, self._output_bank)
        lut: tuple[Resource, ...] = ()
        if schedule.engine is Queue.FE:
            yield self._engine(
                LutProgram(
                    layer=self._number,
                    w_bank=bank,
                    mode=LutMode.FC if block.groups else LutMode.CONV,
                    rows=block.rows,
                    groups=block.groups,
                    cols=output.columns.size,
                    taps=schedule.partition.kernel[0] * schedule.partition.kernel[1],
                    inputs=block.channels,
                    first_piece=block.first_piece,
                ),
                reads=(weights,),
                writes=(LUT,),
            )
            lut, weights = (LUT,), LUT
        is_conv = self._layer.synapse is not None and isinstance(self._layer.synapse.op, Conv2d)
        tile = self._conv_tile if is_conv else self._fc_tile
        yield self._engine(
            tile(output, index, block, bank),
            reads=(source, weights, *lut),
            writes=(psum,),
        )

    def _conv_tile(self, output: OutputBlock, index: int, block: RowBlock, bank: int) -> ConvTile:
        split = self._schedule.partition
        backward = self._schedule.engine is Queue.BE
        return ConvTile(
            layer=self._number,
            src_bank=bank,
            w_bank=bank,
            dst_bank=self._output_bank,
            accumulate=index > 0,
            kernel_h=split.kernel[0],
            kernel_w=split.kernel[1],
            stride_h=split.stride[0],
            stride_w=split.stride[1],
            h=output.tile.rows.size,
            w=output.tile.columns.size,
            nt=output.times.size,
            nn=output.samples.size,
            rows=block.rows,
            cols=output.columns.size,
            first_piece=block.first_piece,
            tap_row0=block.kernel_row,
            tap_rows=split.kernel_rows_of(block) if backward else split.kernel[0],
            hold=self._layer.held,
        )

    def _fc_tile(self, output: OutputBlock, index: int, block: RowBlock, bank: int) -> FcTile:
        return FcTile(
            layer=self._number,
            src_bank=bank,
            w_bank=bank,
            dst_bank=self._output_bank,
            accumulate=index > 0,
            groups=max(block.groups, 1),
            inputs=block.channels,
            rows=block.rows,
            cols=output.columns.size,
            nt=output.times.size,
            nn=output.samples.size,
            hold=self._layer.held,
        )

    def _finish(self, output: OutputBlock) -> tuple[tuple[Action, ...], tuple[Action, ...]]:
        """Parameters that may be loaded ahead; then the Soma with the membrane's way through memory."""
        buffers, bank = self._buffers, self._output_bank
        early: tuple[Action, ...] = ()
        reads: tuple[Resource, ...] = ((buffers.psum, bank),)
        if self._stages:
            columns = output.columns
            table = Region(
                tensor=self._tensors.neuron, y=(0, self._stages), x=(0, NEURON_FIELDS), c=(columns.first, columns.size)
            )
            early = (self._mover.load(buffers.neuron, bank, table),)
            reads = (*reads, (buffers.neuron, bank))
        split = len(self._schedule.times) > 1
        state_in = split and output.times.start > 0
        state_out = split and output.times is not self._schedule.times[-1]
        states: tuple[Resource, ...] = tuple((buffers.state, stage) for stage in range(self._stages))
        result = buffers.out if self._soma.fires else buffers.psum
        writes: tuple[Resource, ...] = ((buffers.psum, bank), (result, bank), *(states if state_out else ()))
        if self._kept is not NOTHING:
            writes = (*writes, (buffers.out, bank), (buffers.mask, bank))
        work: list[Action] = []
        if state_in:
            reads = (*reads, *states)
            work += [
                self._mover.load(buffers.state, stage, self._state(output, stage)) for stage in range(self._stages)
            ]
        for instruction in self._soma.instructions(output, bank, state_in=state_in, state_out=state_out):
            work.append(self._engine(instruction, reads=reads, writes=writes))
        if state_out:
            work += [
                self._mover.store(buffers.state, stage, self._state(output, stage)) for stage in range(self._stages)
            ]
        tile = output.tile
        region = self._output_region(
            output,
            self._tensors.output,
            (tile.rows.out_start, tile.rows.out_size),
            (tile.columns.out_start, tile.columns.out_size),
        )
        work.append(self._mover.store(result, bank, region))
        work += self._store_kept(output)
        return early, tuple(work)

    def _store_kept(self, output: OutputBlock) -> Iterator[Action]:
        """What the backward pass needs beside the layer's output."""
        buffers, bank, kept, tensors = self._buffers, self._output_bank, self._kept, self._tensors.kept
        if kept.first_spikes:
            yield self._mover.store(buffers.out, bank, self._stage(output, tensors.first_spikes, 0), Part.FIRST)
        for neuron in kept.neurons:
            part = Part.FIRST + neuron.stage
            if neuron.membrane:
                region = self._stage(output, tensors.membranes[neuron.stage], neuron.stage)
                packing = buffers.mask if tensors.compressed else None
                yield self._mover.store(buffers.psum, bank, region, part, packing)
            yield self._mover.store(
                buffers.mask, bank, self._stage(output, tensors.masks[neuron.stage], neuron.stage), part
            )
        if kept.winners:
            tile = output.tile
            region = self._output_region(
                output, tensors.winners, (tile.rows.start, tile.rows.size), (tile.columns.start, tile.columns.size)
            )
            yield self._mover.store(buffers.mask, bank, region, Part.WINNERS)

    def _stage(self, output: OutputBlock, tensor: int, stage: int) -> Region:
        return self._output_region(output, tensor, *self._soma.stage_region(output, stage))

    def _state(self, output: OutputBlock, stage: int) -> Region:
        """Membrane potentials of one stage, at that stage's resolution, to or from memory."""
        rows, columns = self._soma.stage_region(output, stage)
        return Region(
            tensor=self._tensors.states[stage],
            n=(output.samples.start, output.samples.size),
            y=rows,
            x=columns,
            c=(output.columns.first, output.columns.size),
        )

    def _engine(self, instruction: Instruction, *, reads: tuple[Resource, ...], writes: tuple[Resource, ...]) -> Action:
        return Action(queue=self._schedule.engine, instruction=instruction, reads=reads, writes=writes)
