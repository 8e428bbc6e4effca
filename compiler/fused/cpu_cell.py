"""Where the values of a cell stand in the arrays of a CPU kernel: one native vector of channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from compiler.fused.array_cell import ArrayCell, Arrays, Grid, present
from compiler.fused.body import Index
from compiler.fused.emit import Buffer, Expr, Lanes, T, put, tirx
from compiler.fused.population import Population

SUMS = "float64"  # element type of partial sums: a batch norm's statistics in f32 would lose more than torch's
# Steps of one cell lie megabytes apart, often at the same place in every cache. Windows read so many lines that they
# only fit if neighbours take each step together: runs of a few kilobytes, the state of all of them on the stack.
RUN = 2048  # values of a step
KEPT = 131072  # the most membrane potentials of all steps on the stack: half of a second-level cache


def stack(*shape: int, dtype: str = "float32") -> Buffer:
    """Registers, or the stack up to 1 KB: memory of scope `local` would be asked for on a CPU's heap, each time."""
    return T.alloc_buffer(shape, dtype, scope="global")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a member stands: sample, row and column of windows, first channel, group of partial sums."""

    n: Index
    row: Index
    column: Index
    channel: Index
    group: Index


@dataclass(frozen=True, slots=True)
class Tile:
    """The members of a cell: columns of windows by vectors of channels, at most `members` of them."""

    first: Place
    columns: Index
    vectors: Index


def most_members(population: Population, lanes: int) -> int:
    """Members of a cell: one without a window, whose state stays in registers."""
    window = population.window
    if window is None:
        return 1
    values = lanes * window.kernel[0] * window.kernel[1]
    return max(1, min(RUN // values, KEPT // (values * population.timesteps)))


@dataclass
class CpuCell(ArrayCell):
    """A vector of neighbouring channels, or one channel of those left over."""

    population: Population
    lanes: Lanes
    arrays: Arrays
    grid: Grid
    tile: Tile
    most: int  # members
    place: Place = field(init=False)  # of the member at hand
    member: Index = field(init=False)
    numbers: dict[str, Buffer] = field(init=False)  # rows of the table in registers

    def local(self, *shape: int) -> Buffer:
        return stack(*shape)

    @property
    def members(self) -> int:
        return self.most

    @contextmanager
    def each(self) -> Iterator[Index]:
        first, tile = self.tile.first, self.tile
        if self.most == 1:
            self.place, self.member = first, 0
            self._load_numbers()
            yield 0
            return
        with T.serial(tile.columns) as column, T.serial(tile.vectors) as vector:
            channel = first.channel + vector * self.lanes.width
            self.place = Place(first.n, first.row, first.column + column, channel, first.group)
            self.member = column * tile.vectors + vector
            self._load_numbers()
            yield self.member

    def _load_numbers(self) -> None:
        """Read the table once: a store to another array might change it, for all that LLVM knows."""
        self.numbers = {}
        if self.arrays.table is None:
            return
        for at, name in enumerate(self.population.rows):
            self.numbers[name] = stack(self.lanes.width)
            with self.lanes.each() as lane:
                put(self.numbers[name], self.arrays.table[at, self.place.channel + lane], lane)

    def steps(self) -> AbstractContextManager[Expr]:
        loop: AbstractContextManager[Expr] = T.serial(self.population.timesteps)
        return loop

    def number(self, name: str, lane: Index) -> Expr:
        return self.numbers[name][lane]

    def store_y(self, t: Index, value: Callable[[Index], Expr]) -> None:
        self._store(present(self.arrays.y), self.kept(), lambda lane: self.output(t, lane), value)

    def store_grad_x(self, t: Index, k: Index, value: Callable[[Index], Expr]) -> None:
        self._store(self.grad_target, self.valid(k), lambda lane: self.input(t, k, lane), value)

    def fetch(self, t: Index, *, back: bool) -> None:
        """What the same members need at the next step; one member alone finds it faster by itself."""
        if self.lanes.width == 1 or self.most == 1:
            return
        arrays, following = self.arrays, t - 1 if back else t + 1
        if back:
            _fetch(present(arrays.grad_y), self.output(following, 0), write=False)
        elif arrays.y is not None:
            _fetch(arrays.y, self.output(following, 0), write=True)
        window = arrays.grad_x if back else arrays.x
        if window is not None and not self.population.repeated:
            for k in range(self.pixels):
                _fetch(window, self.input(following, k, 0), write=back)

    def add_sums(self, *values: Callable[[Index], Expr]) -> None:
        """Add to the group's partial sums."""
        sums = present(self.arrays.sums)
        for at, value in enumerate(values):
            with self.lanes.each() as lane:
                where = [self.place.group, at, self.place.channel + lane]
                T.buffer_store(sums, sums[tuple(where)] + T.cast(value(lane), SUMS), where)

    def _store(
        self,
        target: Buffer,
        condition: Expr | None,
        indices: Callable[[Index], list[Index]],
        value: Callable[[Index], Expr],
    ) -> None:
        if condition is None:
            self._store_lanes(target, indices, value)
        else:
            with T.If(condition), T.Then():
                self._store_lanes(target, indices, value)

    def _store_lanes(
        self, target: Buffer, indices: Callable[[Index], list[Index]], value: Callable[[Index], Expr]
    ) -> None:
        with self.lanes.each() as lane:
            T.buffer_store(target, T.cast(value(lane), target.dtype), indices(lane))

    def input(self, t: Index, k: Index, lane: Index) -> list[Index]:
        time = [] if self.population.repeated else [t]
        pixel = [self.place.column] if self.population.window is None else [self.place.n, *self.pixel(k)]
        return [*time, *pixel, self.place.channel + lane]

    def output(self, t: Index, lane: Index) -> list[Index]:
        place = self.place
        pixel = [place.column] if self.population.window is None else [place.n, place.row, place.column]
        return [t, *pixel, place.channel + lane]


def _fetch(buffer: Buffer, indices: list[Index], *, write: bool) -> None:
    """Bring a cache line nearer; an address outside the array does no harm."""
    address = T.address_of(buffer[tuple(indices)])
    arguments = (T.int32(int(write)), T.int32(3), T.int32(1))  # into the first level, of data
    T.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch.p0", address, *arguments))
