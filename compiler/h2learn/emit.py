"""Last stage of the H2Learn compiler: the loops of each layer become instructions in program order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from compiler.h2learn.blocks import OutputBlock, output_blocks
from compiler.h2learn.constants import weight_values
from compiler.h2learn.emit_soma import SomaEmitter
from compiler.h2learn.partition_luts import RowBlock
from compiler.h2learn.synchronise import Action, Resource
from compiler.h2learn.tensors import LayerPlan, LayerTensors
from compiler.ir.ops import Conv2d
from hwmodel.config import H2LearnConfig
from hwmodel.isa import (
    ENGINE_BUFFERS,
    NEURON_FIELDS,
    Buffer,
    ConvTile,
    FcTile,
    Instruction,
    Load,
    LutMode,
    LutProgram,
    Queue,
    Store,
)

DMA = Queue.DMA0  # the memory of the sub-batch; the machine may run a program with Mem 0 and Mem 1 swapped
LUT: Resource = ("lut", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class GridIteration:
    """What one grid iteration loads ahead, then does (engine work, late loads, stores)."""

    early: tuple[Action, ...]
    work: tuple[Action, ...]


class LayerEmitter:
    """Emits one layer; its only state are the banks that come next."""

    def __init__(self, number: int, plan: LayerPlan, tensors: LayerTensors, config: H2LearnConfig) -> None:
        self._number = number
        self._layer = plan.layer
        self._schedule = plan.schedule
        self._tensors = tensors
        self._config = config
        self._buffers = ENGINE_BUFFERS[plan.schedule.engine]
        self._soma = SomaEmitter(number, plan.layer, plan.constants)
        self._stages = len(plan.constants.stages)
        self._source_bank = 0
        self._output_bank = 0

    def actions(self) -> Iterator[Action]:
        """The layer in program order: the loads of each grid iteration stand before the work of the last.

        Ensures: executing the actions one after the other is correct; banks alternate, so loads run ahead.
        """
        pending: GridIteration | None = None
        for output in output_blocks(self._layer, self._schedule):
            for iteration in self._iterations(output):
                yield from iteration.early
                if pending is not None:
                    yield from pending.work
                pending = iteration
            self._output_bank ^= 1
        if pending is not None:
            yield from pending.work

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
                self._load_weights(output, index, block, bank),
            )
            compute = tuple(self._compute(output, index, block, bank))
            yield GridIteration(
                early=(*loads, *(early if is_last else ())), work=(*compute, *(work if is_last else ()))
            )

    def _load(self, buffer: Buffer, bank: int, instruction: Load) -> Action:
        return Action(queue=DMA, instruction=instruction, writes=((buffer, bank),))

    def _load_source(self, output: OutputBlock, block: RowBlock, bank: int) -> Action:
        layer, split, tile = self._layer, self._schedule.partition, output.tile
        op = layer.synapse.op if layer.synapse is not None else None
        first = output.columns.first_source + block.first_channel
        region = {"y0": 0, "x0": 0, "h": 1, "w": 1}
        if isinstance(op, Conv2d):
            region = {
                "y0": tile.rows.start * op.stride[0] - op.padding[0] + block.kernel_row,
                "x0": tile.columns.start * op.stride[1] - op.padding[1],
                "h": (tile.rows.size - 1) * op.stride[0] + split.kernel_rows_of(block),
                "w": (tile.columns.size - 1) * op.stride[1] + split.kernel[1],
            }
        return self._load(
            self._buffers.source,
            bank,
            Load(
                layer=self._number,
                buffer=self._buffers.source,
                bank=bank,
                tensor=self._tensors.source,
                t0=0 if layer.held else output.times.start,
                nt=1 if layer.held else output.times.size,
                n0=output.samples.start,
                nn=output.samples.size,
                c0=first,
                nc=block.channels,
                flat=not isinstance(op, Conv2d),
                **region,
            ),
        )

    def _load_weights(self, output: OutputBlock, index: int, block: RowBlock, bank: int) -> Action:
        schedule = self._schedule
        values = weight_values(schedule.engine, schedule.partition, block, output.columns.size, self._config)
        return self._load(
            self._buffers.weights,
            bank,
            self._load_constant(
                self._buffers.weights, bank, self._tensors.weights, output.columns.index, index, values
            ),
        )

    def _load_constant(self, buffer: Buffer, bank: int, tensor: int, row: int, column: int, values: int) -> Load:
        return Load(
            layer=self._number,
            buffer=buffer,
            bank=bank,
            tensor=tensor,
            t0=0,
            nt=1,
            n0=0,
            nn=1,
            y0=row,
            h=1,
            x0=column,
            w=1,
            c0=0,
            nc=values,
            flat=False,
        )

    def _load_soma_input(self, output: OutputBlock) -> Action:
        buffers, tile = self._buffers, output.tile
        return self._load(
            buffers.psum,
            self._output_bank,
            Load(
                layer=self._number,
                buffer=buffers.psum,
                bank=self._output_bank,
                tensor=self._tensors.source,
                t0=output.times.start,
                nt=output.times.size,
                n0=output.samples.start,
                nn=output.samples.size,
                y0=tile.rows.start,
                h=tile.rows.size,
                x0=tile.columns.start,
                w=tile.columns.size,
                c0=output.columns.first,
                nc=output.columns.size,
                flat=False,
            ),
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
            in_sparsity=False,
            out_sparsity=False,
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
            values = self._stages * NEURON_FIELDS * output.columns.size
            load = self._load_constant(buffers.neuron, bank, self._tensors.neuron, output.columns.index, 0, values)
            early = (self._load(buffers.neuron, bank, load),)
            reads = (*reads, (buffers.neuron, bank))
        split = len(self._schedule.times) > 1
        state_in = split and output.times.start > 0
        state_out = split and output.times is not self._schedule.times[-1]
        states: tuple[Resource, ...] = tuple((buffers.state, stage) for stage in range(self._stages))
        result: Resource = (buffers.out if self._soma.fires else buffers.psum, bank)
        writes = ((buffers.psum, bank), result, *(states if state_out else ()))
        work: list[Action] = []
        if state_in:
            reads = (*reads, *states)
            for stage, place in enumerate(states):
                work.append(Action(queue=DMA, instruction=self._state(Load, output, stage), writes=(place,)))
        for instruction in self._soma.instructions(output, bank, state_in=state_in, state_out=state_out):
            work.append(self._engine(instruction, reads=reads, writes=writes))
        if state_out:
            for stage, place in enumerate(states):
                work.append(Action(queue=DMA, instruction=self._state(Store, output, stage), reads=(place,)))
        work.append(Action(queue=DMA, instruction=self._store_result(output), reads=(result,)))
        return early, tuple(work)

    def _store_result(self, output: OutputBlock) -> Store:
        """Spikes, or the membrane of a last neuron that does not fire."""
        return Store(
            layer=self._number,
            buffer=self._buffers.out if self._soma.fires else self._buffers.psum,
            bank=self._output_bank,
            tensor=self._tensors.output,
            t0=output.times.start,
            nt=output.times.size,
            n0=output.samples.start,
            nn=output.samples.size,
            y0=output.tile.rows.out_start,
            h=output.tile.rows.out_size,
            x0=output.tile.columns.out_start,
            w=output.tile.columns.out_size,
            c0=output.columns.first,
            nc=output.columns.size,
            flat=False,
        )

    def _state(self, kind: type[Load] | type[Store], output: OutputBlock, stage: int) -> Instruction:
        """Membrane potentials of one stage, at that stage's resolution, to or from memory."""
        rows, columns = self._soma.stage_region(output, stage)
        return kind(
            layer=self._number,
            buffer=self._buffers.state,
            bank=stage,
            tensor=self._tensors.states[stage],
            t0=0,
            nt=1,
            n0=output.samples.start,
            nn=output.samples.size,
            y0=rows[0],
            h=rows[1],
            x0=columns[0],
            w=columns[1],
            c0=output.columns.first,
            nc=output.columns.size,
            flat=False,
        )

    def _engine(self, instruction: Instruction, *, reads: tuple[Resource, ...], writes: tuple[Resource, ...]) -> Action:
        return Action(queue=self._schedule.engine, instruction=instruction, reads=reads, writes=writes)
