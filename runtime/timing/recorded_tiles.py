"""Records what the masks of a real run make the Backward Engine and the memories do, launch by launch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from hwmodel.checker.streams import MEMORY_OF
from hwmodel.config import H2LearnConfig
from hwmodel.errors import CompileError, Loc
from hwmodel.isa import ENGINE_BUFFERS, GradConvTile, Instruction, Load, Part, Queue, Store, Transfer
from hwmodel.program import Format, Phase, Program
from hwmodel.timing.masked_tiles import Mask, OutputGroups, WindowSums, output_groups, tile_counts, window_sums
from hwmodel.timing.tiles import TileCounts
from runtime.engines import Engines
from runtime.host import F32
from runtime.host_loss import Labels
from runtime.machine import Machine
from runtime.memory import Bank, Values
from runtime.training_session import State, TrainingSession

Place = tuple[Queue, int]  # a queue of a phase, and a position in its stream
Found = TypeVar("Found", WindowSums, OutputGroups)

_FORWARD, _BACKWARD = ENGINE_BUFFERS[Queue.FE], ENGINE_BUFFERS[Queue.BE]
_MASKS = {_FORWARD.psum: _FORWARD.mask, _BACKWARD.psum: _BACKWARD.mask}  # that pack what a store moves
SOURCES, OUTPUTS = 64, 4  # masks whose sums are kept: blocks of rows come again with the next columns, outputs at once


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchRecord:
    """One launch: the work of gradient tiles by position on the Backward Engine, the part kept of transfers."""

    phase: Phase
    tiles: Mapping[int, TileCounts]
    kept: Mapping[Place, float]


@dataclass(frozen=True, slots=True)
class RecordedTiles:
    """A tile source that answers with the mean over recorded launches of one phase.

    Raises: CompileError for a place that was not recorded.
    """

    launches: tuple[Mapping[int, TileCounts], ...]
    mean: Mapping[int, TileCounts] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        places = self.launches[0] if self.launches else {}
        means = {place: _mean([launch[place] for launch in self.launches]) for place in places}
        object.__setattr__(self, "mean", means)

    def counts(self, tile: GradConvTile, position: int) -> TileCounts:
        """The work of the instruction at that place."""
        found = self.mean.get(position)
        if found is None:
            raise CompileError(
                f"be[{position}], a gradient tile of layer {tile.layer}, was not recorded",
                Loc("recorded tiles"),
                hint="record a step of the same program, and take the tiles of the same phase",
            )
        return found


@dataclass(frozen=True, slots=True)
class RecordedKept:
    """The part of each transfer of membrane potentials that is kept, as the mean over recorded launches of a phase.

    Raises: CompileError for a place that was not recorded.
    """

    launches: tuple[Mapping[Place, float], ...]
    mean: Mapping[Place, float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        places = self.launches[0] if self.launches else {}
        count = len(self.launches)
        means = {place: sum(launch[place] for launch in self.launches) / count for place in places}
        object.__setattr__(self, "mean", means)

    def density(self, queue: Queue, position: int, layer: int) -> float:
        """Ones of the mask over its elements."""
        found = self.mean.get((queue, position))
        if found is None:
            raise CompileError(
                f"{queue}[{position}] of layer {layer} was not recorded as a transfer of membrane potentials",
                Loc("recorded transfers"),
                hint="record a step of the same program, and take the transfers of the same phase",
            )
        return found


@dataclass(frozen=True, slots=True)
class Recorded:
    """All launches of a program that were recorded, in their order; records of several steps add up."""

    launches: tuple[LaunchRecord, ...]

    def __add__(self, other: Recorded) -> Recorded:
        return Recorded((*self.launches, *other.launches))

    def of(self, phase: Phase) -> tuple[LaunchRecord, ...]:
        """The launches of a phase."""
        return tuple(launch for launch in self.launches if launch.phase is phase)

    def tiles(self, phase: Phase) -> RecordedTiles:
        """The gradient tiles of a phase."""
        return RecordedTiles(tuple(launch.tiles for launch in self.of(phase)))

    def kept(self, phase: Phase) -> RecordedKept:
        """The transfers of compressed membrane potentials of a phase."""
        return RecordedKept(tuple(launch.kept for launch in self.of(phase)))


class Recorder:
    """An observer of a machine; `config` says which zeros count and who waits, that of the program unless given.

    The configuration decides over cycles alone, so that one run may be counted with another `skips`, `synchronise`,
    `pipe` or `pe_group` than it was compiled for.
    """

    def __init__(self, program: Program, config: H2LearnConfig | None = None) -> None:
        self._program = program
        self._config = config or program.config
        self._tiles: dict[int, TileCounts] = {}
        self._kept: dict[Place, float] = {}
        self._packing: Mapping[Hashable, tuple[Queue, Load]] = {}
        self._launches: list[LaunchRecord] = []
        self._sums: _Recent[WindowSums] = _Recent(SOURCES)
        self._groups: _Recent[OutputGroups] = _Recent(OUTPUTS)

    @property
    def recorded(self) -> Recorded:
        """What was seen so far."""
        return Recorded(tuple(self._launches))

    def begins(self, machine: Machine, phase: Phase) -> None:
        """A new record."""
        self._tiles, self._kept = {}, {}
        self._packing = _mask_loads(self._program, phase)
        self._launches.append(LaunchRecord(phase=phase, tiles=self._tiles, kept=self._kept))

    def executes(self, machine: Machine, queue: Queue, position: int, instruction: Instruction) -> None:
        """Count a gradient tile, or what a transfer moves."""
        if isinstance(instruction, GradConvTile):
            self._tiles[position] = self._count(machine, instruction)
        elif isinstance(instruction, Transfer) and self._is_packed(instruction):
            mask = self._packing_mask(machine, instruction)
            self._kept[queue, position] = int(np.count_nonzero(mask)) / mask.size

    def _count(self, machine: Machine, tile: GradConvTile) -> TileCounts:
        source = machine.bank(_BACKWARD.source, tile.src_bank, Part.FIRST)
        shape = (tile.kernel_h, tile.kernel_w, tile.stride_h, tile.stride_w, tile.h, tile.w, tile.top, tile.left)
        sums = self._sums.get(source, shape, lambda: window_sums(_mask(source.values), tile, self._config))
        if not tile.out_sparsity:
            return tile_counts(sums, output_groups(None, tile, self._config), tile, self._config)
        wanted = machine.bank(_BACKWARD.mask, tile.dst_bank, tile.mask_part)
        groups = self._groups.get(wanted, (), lambda: output_groups(_mask(wanted.values), tile, self._config))
        return tile_counts(sums, groups, tile, self._config)

    def _is_packed(self, transfer: Transfer) -> bool:
        return self._program.tensors[transfer.tensor].format is Format.MCOMP

    def _packing_mask(self, machine: Machine, transfer: Transfer) -> Mask:
        """Ones where an element travels; a value that is kept may itself be 0."""
        if isinstance(transfer, Store):
            return _mask(machine.bank(_MASKS[transfer.buffer], transfer.bank, transfer.part).values)
        queue, load = self._packing[_region(transfer)]
        return _mask(machine.memory.fetch(load, MEMORY_OF[queue]))


def record_step(
    program: Program,
    x: F32,
    labels: Labels,
    *,
    state: State | None = None,
    config: H2LearnConfig | None = None,
    engines: Engines | None = None,
) -> Recorded:
    """Forward and backward passes of a batch on the program's machines, recorded; nothing is updated.

    A batch of several sub-batches has OVERLAP launches too. Weights are the program's, or those of a session's `state`.
    Raises: CompileError as `TrainingSession.gradients`.
    """
    recorder = Recorder(program, config)
    session = RecordedSession(program, engines, recorder=recorder)
    if state is not None:
        session.restore(state)
    session.gradients(x, labels)
    return recorder.recorded


@dataclass(slots=True)
class RecordedSession(TrainingSession):
    """A training session whose machines, one after the other, have a recorder."""

    recorder: Recorder = field(kw_only=True)

    def __post_init__(self) -> None:
        TrainingSession.__post_init__(self)
        for machine in self._machines:
            machine.observer = self.recorder

    def stop_recording(self) -> None:
        """Go on without: what follows is not recorded."""
        for machine in self._machines:
            machine.observer = None


class _Recent(Generic[Found]):
    """What was found of the masks seen last, by the content of their banks."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._items: OrderedDict[Hashable, Found] = OrderedDict()

    def get(self, bank: Bank, shape: Hashable, make: Callable[[], Found]) -> Found:
        """That of the bank's mask, made on first use; a bank without key may hold anything."""
        if bank.key is None:
            return make()
        key = (bank.key, shape)
        found = self._items.get(key)
        if found is None:
            found = self._items[key] = make()
            if len(self._items) > self._most:
                self._items.popitem(last=False)
        self._items.move_to_end(key)
        return found


def _mask(values: Values) -> Mask:
    assert values.dtype == np.uint8
    return values  # type: ignore[return-value]


def _mask_loads(program: Program, phase: Phase) -> dict[Hashable, tuple[Queue, Load]]:
    """The loads of masks by region: membrane potentials come with that of the same part of the mask bank."""
    return {
        _region(instruction): (queue, instruction)
        for queue, stream in program.phases[phase].items()
        for instruction in stream
        if isinstance(instruction, Load) and instruction.buffer is _BACKWARD.mask
    }


def _region(transfer: Transfer) -> Hashable:
    where = (transfer.t0, transfer.nt, transfer.n0, transfer.nn, transfer.y0, transfer.h, transfer.x0, transfer.w)
    return (transfer.layer, transfer.part, *where, transfer.c0, transfer.nc)


def _mean(counts: Iterable[TileCounts]) -> TileCounts:
    every = list(counts)
    return TileCounts(
        cycles=sum(c.cycles for c in every) / len(every),
        macs=sum(c.macs for c in every) / len(every),
        outputs=sum(c.outputs for c in every) / len(every),
        pe_cycles=sum(c.pe_cycles for c in every) / len(every),
    )
