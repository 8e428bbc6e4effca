"""The kernels for CPUs: rows of neurons in parallel, channels innermost, one native vector of them at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

from compiler.fused.array_cell import Arrays, Grid
from compiler.fused.body import Index, backward, forward
from compiler.fused.cpu_cell import SUMS, CpuCell, Place, Tile, most_members, stack
from compiler.fused.emit import Buffer, Expr, Lanes, T, argument, f32, kernel, put, tirx, tvm
from compiler.fused.population import KernelName, Population, Results
from compiler.fused.result_bits import FEWEST_LANES, clear_last_words, part_dtype, write_results
from compiler.tvm_setup import host_target

__all__ = ["SUMS", "cpu_kernel", "vector_lanes"]


@functools.cache
def vector_lanes() -> int:
    """f32 values in one native vector of this CPU."""
    return max(1, int(tvm.get_global_func("target.llvm_get_vector_width")(host_target())) // 32)


def cpu_kernel(
    population: Population,
    name: KernelName,
    *,
    lanes: int,
    tail: bool,
    parallel: bool = True,
    results: Results = Results.Y,
) -> tirx.PrimFunc:
    """One kernel of a population, see `KernelName`. `tail`: the channels are no multiple of the lanes.

    `parallel`: rows are dealt out to threads; otherwise the caller's does all, which is faster for small arrays.
    `results`: what a kernel that writes results writes; bits of forward only.

    Shapes: X (T, Q, C) with Q = N * H * W; with pooling (T, N, H, W, C) and Y (T, N, H', W', C); X and grad_X without
    T if `repeated`; table (rows, C); P (groups, 2, C) in f64; words and mask (T, Q, parts) or (T, N, H', W', parts) as
    signed integers of `lanes` bits, parts = 32 / lanes * ceil(C / 32). Extents but T are read from the arrays.

    Raises: ValueError for bits that this population, kernel or number of lanes has not.
    """
    _check(population, name, lanes, results)
    if name is KernelName.STATISTICS:
        population = replace(population, window=None)
    return kernel(name, _Writer(population, name, lanes, tail, parallel, results).write)


def _check(population: Population, name: KernelName, lanes: int, results: Results) -> None:
    if not results.has_bits:
        return
    if name is not KernelName.FORWARD:
        raise ValueError(f"{name} writes no bits, only forward does")
    if lanes not in (FEWEST_LANES, 16, 32):
        raise ValueError(f"lanes is {lanes}, must be {FEWEST_LANES}, 16 or 32 for results as bits")
    if Results.WORDS in results and not population.binary:
        raise ValueError("averages of spikes are no bits")
    if Results.MASK in results and not population.masked:
        raise ValueError(f"the {population.surrogate.kind} surrogate is 0 nowhere, so there is no mask")


@dataclass(slots=True)
class _Writer:
    """Declares the arguments of one kernel and writes its loops."""

    population: Population
    name: KernelName
    lanes: int
    tail: bool
    parallel: bool
    results: Results
    grid: Grid = field(init=False)
    arrays: Arrays = field(init=False)

    def write(self) -> None:
        self._declare()
        if self.arrays.sums is None:
            with self._dealt(self._runs()) as run:
                self._run(run, 0)
            return
        groups = self.arrays.sums.shape[0]
        with self._dealt(groups) as group:
            with T.serial(2) as at, T.serial(self.grid.channels) as channel:
                T.buffer_store(self.arrays.sums, T.float64(0), [group, at, channel])
            first, last = (index * self._runs() // groups for index in (group, group + 1))
            with T.serial(last - first) as run:
                self._run(first + run, group)

    def _dealt(self, extent: Expr) -> AbstractContextManager[Expr]:
        loop: AbstractContextManager[Expr] = T.parallel(extent) if self.parallel else T.serial(extent)
        return loop

    def _declare(self) -> None:
        population, name = self.population, self.name
        pooled = population.window is not None
        n, channels, *extents = (T.int64() for _ in range(6))
        height, width, out_height, out_width = extents
        dtype = str(population.activation)
        lead: list[Index] = [] if population.repeated else [population.timesteps]
        x_shape = [*lead, n, *((height, width) if pooled else ()), channels]
        y_shape = [population.timesteps, n, *((out_height, out_width) if pooled else ()), channels]
        one = T.int64(1)
        self.grid = (
            Grid(n, height, width, out_height, out_width, channels) if pooled else Grid(one, one, n, one, n, channels)
        )
        self.arrays = arrays = Arrays(argument("x", x_shape, dtype))
        if name is not KernelName.STATISTICS and population.rows:
            arrays.table = argument("table", [len(population.rows), channels])
        if name.backward:
            arrays.grad_y = argument("grad_y", y_shape, dtype)
        if name.writes_grad_x and not population.in_place:
            arrays.grad_x = argument("grad_x", x_shape, dtype)
        if name.writes_sums(population.norm):
            arrays.sums = argument("sums", [T.int64(), 2, channels], SUMS)
        if name.writes_y and Results.Y in self.results:
            arrays.y = argument("y", y_shape, dtype)
        bits_shape = [*y_shape[:-1], T.int64()]
        if Results.WORDS in self.results:
            arrays.words = argument("words", bits_shape, part_dtype(self.lanes))
        if Results.MASK in self.results:
            arrays.mask = argument("mask", bits_shape, part_dtype(self.lanes))

    def _windows(self) -> tuple[Expr, Expr]:
        """Rows and columns of windows, those without a result among them: their inputs have gradients too."""
        window, grid = self.population.window, self.grid
        if window is None or window.exact or self.name is KernelName.FORWARD:
            return grid.out_height, grid.out_width
        rows, columns = window.kernel
        return (grid.height + rows - 1) // rows, (grid.width + columns - 1) // columns

    def _members(self) -> int:
        return most_members(self.population, self.lanes)

    def _run_columns(self) -> Expr:
        """Neighbouring columns that are treated together: as many as make full tiles of vectors."""
        return T.max(self._members() // T.max(self.grid.channels // self.lanes, T.int64(1)), T.int64(1))

    def _runs(self) -> Expr:
        rows, columns = self._windows()
        return self.grid.n * rows * _ceil(columns, self._run_columns())

    def _run(self, index: Expr, group: Index) -> None:
        """All channels of some columns."""
        rows, columns = self._windows()
        length = _opaque(self._run_columns())
        runs = _opaque(_ceil(columns, length))
        row, column = _opaque(index // runs), _opaque(index % runs * length)
        counted = _opaque(T.min(length, columns - column))
        vectors, members = self.grid.channels // self.lanes, self._members()
        sample, row = _opaque(row // rows), _opaque(row % rows)

        def place(channel: Expr) -> Place:
            return Place(sample, row, column, channel, group)

        clear_last_words(self._at(Tile(place(T.int64(0)), counted, T.int64(1)), Lanes(1)))
        with T.serial(_ceil(vectors, T.int64(members))) as tile:
            first = tile * members
            some = _opaque(T.min(T.int64(members), vectors - first))
            self._cell(Tile(place(first * self.lanes), counted, some), Lanes(self.lanes))
        if self.tail:
            self._rest(place, counted)

    def _rest(self, place: Callable[[Expr], Place], columns: Expr) -> None:
        """The channels that fill no vector, one by one. A bit alone costs many times its share of a part of a word.

        So with bits the last vector is one of the last channels, if there are as many; it writes some results again.
        """
        channels, lanes, one = self.grid.channels, self.lanes, T.int64(1)

        def singly() -> None:
            with T.serial(channels % lanes) as channel:
                self._cell(Tile(place(channels // lanes * lanes + channel), columns, one), Lanes(1))

        if not self.results.has_bits:
            singly()
            return
        with T.If(channels >= lanes):
            with T.Then():
                self._cell(Tile(place(channels - lanes), columns, one), Lanes(lanes))
            with T.Else():
                singly()

    def _at(self, tile: Tile, lanes: Lanes) -> CpuCell:
        return CpuCell(self.population, lanes, self.arrays, self.grid, tile, self._members())

    def _cell(self, tile: Tile, lanes: Lanes) -> None:
        cell = self._at(tile, lanes)
        match self.name:
            case KernelName.STATISTICS:
                _statistics(cell)
            case KernelName.FORWARD:
                forward(cell, functools.partial(write_results, cell, self.results))
            case _:
                _Gradient(cell, self.name).write()


def _opaque(index: Expr) -> Expr:
    """The index in a register: TVM would put its terms into every address and simplify each for seconds."""
    register = stack(1, dtype="int64")
    put(register, index, 0)
    return register[0]


def _ceil(extent: Expr, parts: Expr) -> Expr:
    return (extent + parts - 1) // parts


def _statistics(cell: CpuCell) -> None:
    """Sums of x - x[0] and its square: the shift keeps a large mean from cancelling the variance."""
    first, second = _zeros(cell), _zeros(cell)
    steps = 1 if cell.population.repeated else cell.population.timesteps
    shifted = stack(cell.lanes.width)
    with T.serial(steps) as t, cell.each() as j:
        cell.fetch(t, back=False)
        with cell.lanes.each() as lane:
            x, channel = cell.arrays.x, cell.place.channel + lane
            lead = (0,) if cell.population.repeated else (0, 0)
            put(shifted, cell.x(t, 0, lane) - f32(x[(*lead, channel)]), lane)
        with cell.lanes.each() as lane:
            put(first, first[j, lane] + shifted[lane], j, lane)
        with cell.lanes.each() as lane:
            put(second, second[j, lane] + shifted[lane] * shifted[lane], j, lane)
    with cell.each() as j:
        cell.add_sums(lambda lane: first[j, lane], lambda lane: second[j, lane])


@dataclass(slots=True)
class _Gradient:
    """The end of a backward kernel: sums over T and the window, gradients of the input."""

    cell: CpuCell
    name: KernelName
    first: Buffer | None = None  # (members, lanes)
    second: Buffer | None = None
    total: Buffer | None = None  # (members, pixels, lanes) over time, of a repeated input

    def write(self) -> None:
        cell, name = self.cell, self.name
        if cell.arrays.sums is not None:
            self.first, self.second = _zeros(cell), _zeros(cell)
        if name.writes_grad_x and cell.population.repeated:
            self.total = _zeros(cell, cell.pixels)
        backward(cell, self._result, spikes=cell.arrays.y is not None)
        with cell.each() as j:
            self._finish(j, self.first, self.second, self.total)

    def _finish(self, j: Index, first: Buffer | None, second: Buffer | None, total: Buffer | None) -> None:
        if total is not None:
            with T.unroll(self.cell.pixels) as k:
                self.cell.store_grad_x(0, k, lambda lane: total[j, k, lane])
        if first is not None and second is not None:
            self.cell.add_sums(lambda lane: first[j, lane], lambda lane: second[j, lane])

    def _result(self, t: Index, k: Index, grad_m: Buffer) -> None:
        if self.first is not None and self.second is not None:
            self._add(t, k, grad_m, self.first, self.second)
        if self.total is not None:
            j = self.cell.member
            with self.cell.lanes.each() as lane:
                put(self.total, self.total[j, k, lane] + self._grad_x(t, k, lane, grad_m), j, k, lane)
        elif self.name.writes_grad_x:
            self.cell.store_grad_x(t, k, lambda lane: self._grad_x(t, k, lane, grad_m))

    def _add(self, t: Index, k: Index, grad_m: Buffer, first: Buffer, second: Buffer) -> None:
        cell, valid, j = self.cell, self.cell.valid(k), self.cell.member

        def counted(lane: Index) -> Expr:
            return grad_m[k, lane] if valid is None else T.Select(valid, grad_m[k, lane], f32(0.0))

        with cell.lanes.each() as lane:
            put(first, first[j, lane] + counted(lane), j, lane)
        with cell.lanes.each() as lane:
            centred = cell.dynamics(lane).centred(cell.x(t, k, lane))
            put(second, second[j, lane] + counted(lane) * centred, j, lane)

    def _grad_x(self, t: Index, k: Index, lane: Index, grad_m: Buffer) -> Expr:
        return self.cell.dynamics(lane).grad_x(self.cell.x(t, k, lane), grad_m[k, lane])


def _zeros(cell: CpuCell, *pixels: int) -> Buffer:
    zeros = stack(cell.members, *pixels, cell.lanes.width)
    with cell.each() as j, T.unroll(pixels[0] if pixels else 1) as k, cell.lanes.each() as lane:
        put(zeros, f32(0.0), j, *((k,) if pixels else ()), lane)
    return zeros
