"""Emits the weight gradients of a layer, equations 2.7 and 2.8, and their sum with those of earlier sub-batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from compiler.h2learn.pipeline import GridIteration
from compiler.h2learn.schedule_dataflow import Chunk, chunks
from compiler.h2learn.synchronise import Action
from compiler.h2learn.transfers import Mover, Region
from compiler.h2learn.update_schedule import UpdateSchedule
from hwmodel.isa import (
    GRADIENT_BUFFERS,
    AddGradient,
    Instruction,
    OuterTile,
    Part,
    Queue,
    UpdateFcTile,
    UpdateTile,
)

SAMPLES = Queue.DMA1
GRADIENTS = Queue.DMA2


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateTensors:
    """What the weight gradients read and write, as indices of the tensor table."""

    source: int  # the layer's input, as it stood one launch ago
    gradient: int  # of the layer's sums
    weight_gradient: int
    bias_gradient: int  # -1 without


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """Output and input channels whose gradients stay on chip."""

    outputs: Chunk
    inputs: Chunk
    has_bias: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """One grid iteration of a block."""

    rows: Chunk
    columns: Chunk
    samples: Chunk
    times: Chunk


class UpdateEmitter:
    """Emits one layer's weight gradients; its only state are the banks that come next."""

    def __init__(self, number: int, schedule: UpdateSchedule, tensors: UpdateTensors) -> None:
        self._number = number
        self._schedule = schedule
        self._shape = schedule.shape
        self._tensors = tensors
        self._engine = schedule.shape.engine
        self._buffers = GRADIENT_BUFFERS[schedule.shape.engine]
        self._samples = Mover(layer=number, queue=SAMPLES)
        self._gradients = Mover(layer=number, queue=GRADIENTS)
        self._source_bank = 0
        self._bank = 0
        self._stream_bank = 0

    def iterations(self) -> Iterator[GridIteration]:
        """All grid iterations."""
        for outputs in self._schedule.outputs:
            for inputs in self._schedule.inputs:
                has_bias = self._tensors.bias_gradient >= 0 and inputs.start == 0
                yield from self._block(_Block(outputs=outputs, inputs=inputs, has_bias=has_bias))
                self._bank ^= 1

    def _block(self, block: _Block) -> Iterator[GridIteration]:
        pieces = tuple(self._pieces())
        for index, piece in enumerate(pieces):
            bank = self._source_bank
            self._source_bank ^= 1
            compute = Action(
                queue=self._engine,
                instruction=self._tile(block, piece, bank, index > 0),
                reads=((self._buffers.source, bank), (self._buffers.gradient, bank)),
                writes=((self._buffers.psum, self._bank),),
            )
            last = tuple(self._add_to_memory(block)) if index == len(pieces) - 1 else ()
            yield GridIteration(
                early=(self._load_source(block, piece, bank), self._load_gradient(block, piece, bank)),
                work=(compute, *last),
            )

    def _pieces(self) -> Iterator[_Piece]:
        schedule = self._schedule
        for rows in schedule.tile_rows:
            for columns in schedule.tile_columns:
                for samples in schedule.samples:
                    for times in schedule.times:
                        yield _Piece(rows=rows, columns=columns, samples=samples, times=times)

    def _load_source(self, block: _Block, piece: _Piece, bank: int) -> Action:
        shape = self._shape
        group = block.outputs.start // shape.outputs
        y, x = (
            (chunk.start * shape.stride[i] - shape.padding[i], (chunk.size - 1) * shape.stride[i] + shape.kernel[i])
            for i, chunk in enumerate((piece.rows, piece.columns))
        )
        region = Region(
            tensor=self._tensors.source,
            t=(0, 1) if shape.held else (piece.times.start, piece.times.size),
            n=(piece.samples.start, piece.samples.size),
            y=y,
            x=x,
            c=(group * shape.inputs + block.inputs.start, block.inputs.size),
            flat=not shape.is_conv,
        )
        return self._samples.load(self._buffers.source, bank, region)

    def _load_gradient(self, block: _Block, piece: _Piece, bank: int) -> Action:
        region = Region(
            tensor=self._tensors.gradient,
            t=(piece.times.start, piece.times.size),
            n=(piece.samples.start, piece.samples.size),
            y=(piece.rows.start, piece.rows.size),
            x=(piece.columns.start, piece.columns.size),
            c=(block.outputs.start, block.outputs.size),
        )
        return self._samples.load(self._buffers.gradient, bank, region)

    def _tile(self, block: _Block, piece: _Piece, bank: int, accumulate: bool) -> Instruction:
        shape = self._shape
        if self._engine is Queue.WUE and not shape.is_conv:
            return UpdateFcTile(
                layer=self._number,
                src_bank=bank,
                gm_bank=bank,
                dst_bank=self._bank,
                accumulate=accumulate,
                bias=block.has_bias,
                inputs=block.inputs.size,
                cols=block.outputs.size,
                nt=piece.times.size,
                nn=piece.samples.size,
            )
        if self._engine is Queue.WUE:
            return UpdateTile(
                layer=self._number,
                src_bank=bank,
                gm_bank=bank,
                dst_bank=self._bank,
                accumulate=accumulate,
                bias=block.has_bias,
                kernel_h=shape.kernel[0],
                kernel_w=shape.kernel[1],
                stride_h=shape.stride[0],
                stride_w=shape.stride[1],
                h=piece.rows.size,
                w=piece.columns.size,
                nt=piece.times.size,
                nn=piece.samples.size,
                channels=block.inputs.size,
                cols=block.outputs.size,
            )
        return OuterTile(
            layer=self._number,
            src_bank=bank,
            gm_bank=bank,
            dst_bank=self._bank,
            accumulate=accumulate,
            bias=block.has_bias,
            kernel_h=shape.kernel[0],
            kernel_w=shape.kernel[1],
            stride_h=shape.stride[0],
            stride_w=shape.stride[1],
            h=piece.rows.size,
            w=piece.columns.size,
            nt=piece.times.size,
            nn=piece.samples.size,
            channels=block.inputs.size,
            cols=block.outputs.size,
            hold=shape.held,
        )

    def _add_to_memory(self, block: _Block) -> Iterator[Action]:
        """Slice by slice through the adder; a slice is loaded while the one before is added and stored."""
        slices = [
            (Part.RESULT, chunk, self._weight_region(block, chunk))
            for chunk in chunks(block.inputs.size, self._schedule.slice_inputs)
        ]
        if block.has_bias:
            bias = Region(tensor=self._tensors.bias_gradient, c=(block.outputs.start, block.outputs.size))
            slices.append((Part.FIRST, Chunk(start=0, size=1), bias))
        pending: tuple[Action, ...] = ()
        for part, chunk, region in slices:
            bank = self._stream_bank
            self._stream_bank ^= 1
            yield self._gradients.load(self._buffers.stream, bank, region)
            yield from pending
            add = AddGradient(
                layer=self._number,
                psum_bank=self._bank,
                part=part,
                stream_bank=bank,
                first=chunk.start,
                count=chunk.size,
            )
            pending = (
                Action(
                    queue=self._engine,
                    instruction=add,
                    reads=((self._buffers.psum, self._bank),),
                    writes=((self._buffers.stream, bank),),
                ),
                self._gradients.store(self._buffers.stream, bank, region),
            )
        yield from pending

    def _weight_region(self, block: _Block, chunk: Chunk) -> Region:
        return Region(
            tensor=self._tensors.weight_gradient,
            y=(0, self._shape.positions),
            x=(block.inputs.start + chunk.start, chunk.size),
            c=(block.outputs.start, block.outputs.size),
        )
