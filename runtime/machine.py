"""The simulated machine: executes a program's queues on functional engines, instruction by instruction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from hwmodel.checker.banks import part_of
from hwmodel.checker.streams import MEMORY_OF
from hwmodel.config_checks import functional_fault
from hwmodel.errors import CompileError, Loc
from hwmodel.isa import (
    ENGINE_BUFFERS,
    Buffer,
    ConvTile,
    FcTile,
    Halt,
    Instruction,
    Load,
    LutMode,
    LutProgram,
    PoolSetup,
    Queue,
    Signal,
    Soma,
    Store,
    Wait,
)
from hwmodel.program import Format, Phase, Program, Streams
from runtime.engines import F16, U8, Engines, Window
from runtime.memory import Bank, Memory, RegionCache, Values
from runtime.soma_unit import SomaUnit
from runtime.traces import Traces
from runtime.training_unit import TRAINING_RULES, HostActions, TrainingUnit

CACHE_BYTES = 96 << 20  # look-up indices of the current tile, reused by its column blocks


_FORWARD, _BACKWARD = ENGINE_BUFFERS[Queue.FE], ENGINE_BUFFERS[Queue.BE]
_MASKS = {_FORWARD.psum: _FORWARD.mask, _BACKWARD.psum: _BACKWARD.mask}
_REUSED = {  # read only, and by several grid iterations
    *(_FORWARD.source, _FORWARD.weights, _FORWARD.neuron),
    *(_BACKWARD.source, _BACKWARD.weights, _BACKWARD.neuron),
    Buffer.WU_IN,
}


class Observer(Protocol):
    """Looks on while a machine executes, and changes nothing."""

    def begins(self, machine: Machine, phase: Phase) -> None:
        """A launch begins."""
        ...

    def executes(self, machine: Machine, queue: Queue, position: int, instruction: Instruction) -> None:
        """An instruction is about to be executed; those of semaphores and the end of a queue are not announced."""
        ...


class Machine:
    """One H2Learn with its memories; functional only: what is computed, not when.

    Queues run in order and wait on counting semaphores; between waits they may run in any order, since the
    static checker has proved that the result does not depend on it.
    """

    def __init__(self, program: Program, engines: Engines) -> None:
        config = program.config
        if fault := functional_fault(config):
            raise CompileError(fault, Loc(program.name), hint="time it without executing it")
        if (engines.array_rows, engines.dense_rows) != (config.forward.rows, config.backward.rows):
            raise CompileError(
                f"the engines have {engines.array_rows} and {engines.dense_rows} rows, the program was compiled for "
                f"{config.forward.rows} and {config.backward.rows}",
                Loc(program.name),
                hint="leave the engines out, or make them with the configuration's rows",
            )
        self._program = program
        self._engines = engines
        self.memory = Memory(program)
        self.observer: Observer | None = None
        self._banks: dict[tuple[Buffer, int], Bank] = {}
        self._lut: dict[Queue, F16] = {}
        self._cache = RegionCache(CACHE_BYTES)
        self._traces: Traces | None = None
        self._soma = SomaUnit(program, engines)
        self._training = TrainingUnit(program, engines, self.memory, self._banks, self._cache)

    @property
    def training(self) -> TrainingUnit:
        """What executes the instructions of training."""
        return self._training

    def bank(self, buffer: Buffer, bank: int, part: int = 0) -> Bank:
        """A part of a bank as it stands now, which must have been written."""
        return self._banks[part_of(buffer, bank, part)]

    def run(self, inputs: Values, traces: Traces | None = None) -> Values:
        """Execute an inference program once on one sub-batch; traces, if given, are filled.

        Shapes: inputs as the program's input tensor (t, n, y, x, c); the result as its output tensor.
        Raises: CompileError naming layer, step and channel where a value leaves FP16.
        """
        source, output = self._program.input_index, self._program.output_index
        assert inputs.shape == self._program.tensors[source].shape
        self.memory.array(source)[...] = inputs
        self.memory.changed(source)
        self.launch(Phase.RUN, traces=traces)
        return self.memory.array(output).copy()

    def launch(
        self,
        phase: Phase,
        *,
        swapped: bool = False,
        host: HostActions | None = None,
        traces: Traces | None = None,
    ) -> None:
        """Execute one phase to its end, with Mem 0 and Mem 1 in their places or `swapped`.

        Raises: CompileError naming layer, step and channel where a value leaves FP16.
        """
        self.memory.swapped = swapped
        self._traces = traces
        self._soma.reset(phase)
        self._soma.probe = traces is not None
        self._training.begin(host)
        if self.observer is not None:
            self.observer.begins(self, phase)
        self._execute(self._program.phases[phase])

    def _execute(self, all_streams: Streams) -> None:
        streams = {queue: stream for queue, stream in all_streams.items() if stream}
        position = dict.fromkeys(streams, 0)
        semaphores: dict[int, int] = {}
        running = set(streams)
        while running:
            progress = False
            for queue in [q for q in streams if q in running]:
                start = position[queue]
                position[queue] = self._advance(queue, streams[queue], start, semaphores)
                progress |= position[queue] > start
                if position[queue] == len(streams[queue]):
                    running.discard(queue)
            if not progress:
                raise CompileError("the queues wait for each other", Loc(self._program.name))

    def _advance(self, queue: Queue, stream: tuple[Instruction, ...], at: int, semaphores: dict[int, int]) -> int:
        """Run one queue until it waits or ends; returns its new position."""
        while at < len(stream):
            instruction = stream[at]
            kind = type(instruction)
            if kind is Wait:
                assert isinstance(instruction, Wait)
                count = semaphores.get(instruction.semaphore, 0)
                if not count:
                    return at
                semaphores[instruction.semaphore] = count - 1
            elif kind is Signal:
                assert isinstance(instruction, Signal)
                semaphores[instruction.semaphore] = semaphores.get(instruction.semaphore, 0) + 1
            elif kind is Halt:
                return len(stream)
            else:
                if self.observer is not None:
                    self.observer.executes(self, queue, at, instruction)
                _RULES[kind](self, queue, instruction)
            at += 1
        return at

    def _load(self, queue: Queue, load: Load) -> None:
        memory = MEMORY_OF[queue]
        key = self.memory.key(load, memory)
        if load.buffer in _REUSED:
            values = cast(Values, self._cache.get(key, lambda: self.memory.fetch(load, memory)))
        else:
            values = self.memory.fetch(load, memory)
        self._banks[part_of(load.buffer, load.bank, load.part)] = Bank(values, key)

    def _store(self, queue: Queue, store: Store) -> None:
        values = self._banks[part_of(store.buffer, store.bank, store.part)].values
        if self._program.tensors[store.tensor].format is Format.MCOMP:
            mask = self._banks[part_of(_MASKS[store.buffer], store.bank, store.part)].values
            values = np.where(mask != 0, values, np.float16(0)).astype(np.float16)
        self.memory.put(store, MEMORY_OF[queue], values)
        if self._traces is not None:
            self._soma.record(store, self._traces)

    def _lut_program(self, queue: Queue, program: LutProgram) -> None:
        forward = self._program.config.forward
        weights = _f16(self._banks[Buffer.W, program.w_bank].values)
        if program.mode is LutMode.CONV:
            self._lut[queue] = self._engines.program_conv(_pieces(weights[0], program, forward.taps_per_pe))
        else:
            padded = np.zeros((program.groups * program.rows * forward.sub_luts, program.cols), np.float16)
            padded[: program.inputs] = weights.reshape(program.inputs, program.cols)
            self._lut[queue] = self._engines.program_fc(padded.reshape(program.groups, program.rows, -1, program.cols))

    def _conv_tile(self, queue: Queue, tile: ConvTile) -> None:
        window = Window(
            kernel_h=tile.kernel_h,
            kernel_w=tile.kernel_w,
            stride_h=tile.stride_h,
            stride_w=tile.stride_w,
            out_h=tile.h,
            out_w=tile.w,
        )
        if queue is Queue.BE:
            self._dense(tile, window)
            return
        source = self._banks[_FORWARD.source, tile.src_bank]
        psum = self._psum(_FORWARD.psum, tile, tile.nt * tile.nn)
        key = (source.key, window, tile.first_piece, tile.rows)
        indices = self._cache.get(
            key, lambda: self._engines.indices(_u8(source.values), window, tile.first_piece, tile.rows)
        )
        self._engines.accumulate(self._lut[queue], indices, psum, not tile.accumulate)  # type: ignore[arg-type]

    def _dense(self, tile: ConvTile, window: Window) -> None:
        source = _f16(self._banks[_BACKWARD.source, tile.src_bank].values)
        weights = _f16(self._banks[_BACKWARD.weights, tile.w_bank].values)
        psum = self._psum(_BACKWARD.psum, tile, (1 if tile.hold else tile.nt) * tile.nn)
        self._engines.accumulate_dense(
            source,
            weights.reshape(tile.tap_rows * tile.kernel_w, tile.rows, tile.cols),
            window,
            tile.tap_row0,
            tile.tap_rows,
            psum,
            not tile.accumulate,
        )

    def _fc_tile(self, queue: Queue, tile: FcTile) -> None:
        if queue is Queue.BE:
            self._dense_fc(tile)
            return
        source = self._banks[_FORWARD.source, tile.src_bank]
        width = tile.groups * tile.rows * self._program.config.forward.sub_luts
        spikes = self._cache.get((source.key, width), lambda: _padded(source.values, width))
        psum = self._psum(_FORWARD.psum, tile, tile.nt * tile.nn)
        self._engines.accumulate_fc(
            self._lut[queue],
            spikes,  # type: ignore[arg-type]
            psum.reshape(len(psum), -1),
            not tile.accumulate,
        )

    def _dense_fc(self, tile: FcTile) -> None:
        source = _f16(self._banks[_BACKWARD.source, tile.src_bank].values)
        weights = _f16(self._banks[_BACKWARD.weights, tile.w_bank].values)
        psum = self._psum(_BACKWARD.psum, tile, (1 if tile.hold else tile.nt) * tile.nn)
        window = Window(kernel_h=1, kernel_w=1, stride_h=1, stride_w=1, out_h=1, out_w=1)
        self._engines.accumulate_dense(
            source, weights.reshape(1, tile.inputs, tile.cols), window, 0, 1, psum, not tile.accumulate
        )

    def _psum(self, buffer: Buffer, tile: ConvTile | FcTile, batch: int) -> F16:
        """The partial sums that the tile accumulates into; a fresh bank when it starts them."""
        if tile.accumulate:
            return _f16(self._banks[buffer, tile.dst_bank].values)
        height, width = (tile.h, tile.w) if isinstance(tile, ConvTile) else (1, 1)
        psum = np.empty((batch, height, width, tile.cols), np.float16)
        self._banks[buffer, tile.dst_bank] = Bank(psum)
        return psum

    def _pool_setup(self, queue: Queue, setup: PoolSetup) -> None:
        self._soma.set_pool(queue, setup)
        self._training.set_pool(queue, setup)

    def _run_soma(self, queue: Queue, soma: Soma) -> None:
        self._soma.run(queue, soma, self._banks)


def _delegated(method: Callable[..., None]) -> Callable[..., None]:
    def rule(machine: Machine, queue: Queue, instruction: Instruction) -> None:
        method(machine.training, queue, instruction)

    return rule


_RULES: dict[type[Instruction], Callable[..., None]] = {
    Load: Machine._load,
    Store: Machine._store,
    LutProgram: Machine._lut_program,
    ConvTile: Machine._conv_tile,
    FcTile: Machine._fc_tile,
    PoolSetup: Machine._pool_setup,
    Soma: Machine._run_soma,
    **{kind: _delegated(method) for kind, method in TRAINING_RULES.items()},
}


def _f16(values: Values) -> F16:
    assert values.dtype == np.float16
    return values  # type: ignore[return-value]


def _u8(values: Values) -> U8:
    assert values.dtype == np.uint8
    return values  # type: ignore[return-value]


def _pieces(weights: F16, program: LutProgram, taps_per_pe: int) -> F16:
    """The rows of a grid iteration. Shapes: (taps, inputs, cols) -> (rows, taps per PE, cols)."""
    pieces = -(-program.taps // taps_per_pe)
    padded = np.zeros((program.inputs, pieces * taps_per_pe, program.cols), np.float16)
    padded[:, : program.taps] = weights.transpose(1, 0, 2)
    rows = padded.reshape(-1, taps_per_pe, program.cols)
    return rows[program.first_piece : program.first_piece + program.rows]


def _padded(values: Values, width: int) -> npt.NDArray[np.uint8]:
    """Inputs of a linear layer as one row per step and sample, padded with silent inputs."""
    flat = values.reshape(len(values), -1)
    out = np.zeros((len(flat), width), np.uint8)
    out[:, : flat.shape[1]] = flat
    return out
