"""The kernels for CPUs: rows of neurons in parallel, channels innermost, one native vector of them at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from compiler.fused.body import Cell, Index, backward, forward
from compiler.fused.emit import Buffer, Expr, Lanes, T, argument, both, f32, kernel, local, put, tirx, tvm
from compiler.fused.population import KernelName, Population
from compiler.tvm_setup import host_target

SUMS = "float64"  # element type of partial sums: a batch norm's statistics in f32 would lose more than torch's


def vector_lanes() -> int:
    """f32 values in one native vector of this CPU."""
    return max(1, int(tvm.get_global_func("target.llvm_get_vector_width")(host_target())) // 32)


def cpu_kernel(population: Population, name: KernelName, *, lanes: int, tail: bool) -> tirx.PrimFunc:
    """One kernel of a population, see `KernelName`. `tail`: the channels are no multiple of the lanes.

    Shapes: X (T, Q, C) with Q = N * H * W; with pooling (T, N, H, W, C) and Y (T, N, H', W', C); X and grad_X without
    T if `repeated`; table (rows, C); P (groups, 2, C) in f64. Extents but T are read from the arrays.
    """
    return kernel(name, _Writer(population, name, lanes, tail).write)


@dataclass(slots=True)
class _Arrays:
    """The arguments of a kernel; None where it has no such."""

    x: Buffer
    table: Buffer | None = None
    y: Buffer | None = None
    grad_y: Buffer | None = None
    grad_x: Buffer | None = None
    sums: Buffer | None = None


@dataclass(frozen=True, slots=True)
class _Grid:
    """Symbolic extents. Without pooling a row is a pixel of a sample: height and width are 1, n is N * H * W."""

    n: Expr
    height: Expr
    width: Expr
    out_height: Expr
    out_width: Expr
    channels: Expr


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a cell stands: sample, row and column of windows, first channel, group of partial sums."""

    n: Index
    row: Index
    column: Index
    channel: Index
    group: Index


@dataclass(frozen=True)
class _CpuCell(Cell):
    population: Population
    lanes: Lanes
    arrays: _Arrays
    grid: _Grid
    place: _Place

    def steps(self) -> AbstractContextManager[Expr]:
        return T.serial(self.population.timesteps)

    def number(self, name: str, lane: Index) -> Expr:
        return self.arrays.table[self.population.rows.index(name), self.place.channel + lane]

    def x(self, t: Index, k: Index, lane: Index) -> Expr:
        value, valid = f32(self.arrays.x[tuple(self._input(t, k, lane))]), self.valid(k)
        return value if valid is None else T.if_then_else(valid, value, f32(0.0))

    def grad_y(self, t: Index, lane: Index) -> Expr:
        value, kept = f32(self.arrays.grad_y[tuple(self._output(t, lane))]), self._kept()
        return value if kept is None else T.if_then_else(kept, value, f32(0.0))

    def store_y(self, t: Index, value: Callable[[Index], Expr]) -> None:
        self._store(self.arrays.y, self._kept(), lambda lane: self._output(t, lane), value)

    def store_grad_x(self, t: Index, k: Index, value: Callable[[Index], Expr]) -> None:
        target = self.arrays.grad_y if self.population.in_place else self.arrays.grad_x
        self._store(target, self.valid(k), lambda lane: self._input(t, k, lane), value)

    def valid(self, k: Index) -> Expr | None:
        window = self.population.window
        if window is None or window.exact:
            return None
        row, column = self._pixel(k)
        return both(row < self.grid.height, column < self.grid.width)

    def share(self) -> Expr:
        window = self.population.window
        assert window is not None
        (rows, columns), place = window.kernel, self.place
        if window.exact:
            return f32(1 / (rows * columns))
        rows = T.min(rows, self.grid.height - place.row * rows)
        return f32(1.0) / T.cast(rows * T.min(columns, self.grid.width - place.column * columns), "float32")

    def add_sums(self, first: Buffer, second: Buffer) -> None:
        """Add to the group's partial sums."""
        for at, values in enumerate((first, second)):
            with self.lanes.each() as lane:
                where = [self.place.group, at, self.place.channel + lane]
                T.buffer_store(self.arrays.sums, self.arrays.sums[tuple(where)] + T.cast(values[lane], SUMS), where)

    def _store(
        self,
        target: Buffer | None,
        condition: Expr | None,
        indices: Callable[[Index], list[Index]],
        value: Callable[[Index], Expr],
    ) -> None:
        assert target is not None
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

    def _kept(self) -> Expr | None:
        """Whether the window has a result."""
        window = self.population.window
        if window is None or window.exact:
            return None
        return both(self.place.row < self.grid.out_height, self.place.column < self.grid.out_width)

    def _pixel(self, k: Index) -> tuple[Expr, Expr]:
        window = self.population.window
        assert window is not None
        rows, columns = window.kernel
        return self.place.row * rows + k // columns, self.place.column * columns + k % columns

    def _input(self, t: Index, k: Index, lane: Index) -> list[Index]:
        time = [] if self.population.repeated else [t]
        pixel = [] if self.population.window is None else list(self._pixel(k))
        return [*time, self.place.n, *pixel, self.place.channel + lane]

    def _output(self, t: Index, lane: Index) -> list[Index]:
        pixel = [] if self.population.window is None else [self.place.row, self.place.column]
        return [t, self.place.n, *pixel, self.place.channel + lane]


@dataclass(slots=True)
class _Writer:
    """Declares the arguments of one kernel and writes its loops."""

    population: Population
    name: KernelName
    lanes: int
    tail: bool
    grid: _Grid = field(init=False)
    arrays: _Arrays = field(init=False)

    def write(self) -> None:
        self._declare()
        if self.arrays.sums is None:
            with T.parallel(self._rows()) as row:
                self._columns(row, 0)
            return
        groups = self.arrays.sums.shape[0]
        with T.parallel(groups) as group:
            with T.serial(2) as at, T.serial(self.grid.channels) as channel:
                T.buffer_store(self.arrays.sums, T.float64(0), [group, at, channel])
            first, last = (index * self._rows() // groups for index in (group, group + 1))
            with T.serial(last - first) as row:
                self._columns(first + row, group)

    def _declare(self) -> None:
        population, name = self.population, self.name
        pooled = population.window is not None and name is not KernelName.STATISTICS
        n, channels, *extents = (T.int64() for _ in range(6))
        height, width, out_height, out_width = extents
        dtype = str(population.activation)
        lead: list[Index] = [] if population.repeated else [population.timesteps]
        x_shape = [*lead, n, *((height, width) if pooled else ()), channels]
        y_shape = [population.timesteps, n, *((out_height, out_width) if pooled else ()), channels]
        one = T.int64(1)
        self.grid = (
            _Grid(n, height, width, out_height, out_width, channels)
            if pooled
            else _Grid(n, one, one, one, one, channels)
        )
        self.arrays = arrays = _Arrays(argument("x", x_shape, dtype))
        if name is not KernelName.STATISTICS and population.rows:
            arrays.table = argument("table", [len(population.rows), channels])
        if name.backward:
            arrays.grad_y = argument("grad_y", y_shape, dtype)
        if name.writes_grad_x and not population.in_place:
            arrays.grad_x = argument("grad_x", x_shape, dtype)
        if name.writes_sums(population.norm):
            arrays.sums = argument("sums", [T.int64(), 2, channels], SUMS)
        if name.writes_y:
            arrays.y = argument("y", y_shape, dtype)

    def _window_rows(self) -> tuple[Expr, Expr]:
        """Rows and columns of windows, those without a result among them: their inputs have gradients too."""
        window, grid = self.population.window, self.grid
        if window is None or self.name is KernelName.STATISTICS:
            return T.int64(1), T.int64(1)
        if window.exact or self.name is KernelName.FORWARD:
            return grid.out_height, grid.out_width
        rows, columns = window.kernel
        return (grid.height + rows - 1) // rows, (grid.width + columns - 1) // columns

    def _rows(self) -> Expr:
        return self.grid.n * self._window_rows()[0]

    def _columns(self, index: Expr, group: Index) -> None:
        rows, columns = self._window_rows()
        with T.serial(columns) as column:
            self._channels(lambda channel: _Place(index // rows, index % rows, column, channel, group))

    def _channels(self, place: Callable[[Expr], _Place]) -> None:
        channels, width = self.grid.channels, self.lanes
        with T.serial(channels // width) as block:
            self._cell(place(block * width), Lanes(width))
        if self.tail:
            with T.serial(channels % width) as channel:
                self._cell(place(channels // width * width + channel), Lanes(1))

    def _cell(self, place: _Place, lanes: Lanes) -> None:
        cell = _CpuCell(self.population, lanes, self.arrays, self.grid, place)
        match self.name:
            case KernelName.STATISTICS:
                _statistics(cell)
            case KernelName.FORWARD:
                forward(cell)
            case _:
                _Gradient(cell, self.name).write()


def _statistics(cell: _CpuCell) -> None:
    """Sums of x - x[0] and its square: the shift keeps a large mean from cancelling the variance."""
    first, second = local(cell.lanes.width), local(cell.lanes.width)
    for sums in (first, second):
        with cell.lanes.each() as lane:
            put(sums, f32(0.0), lane)
    steps = 1 if cell.population.repeated else cell.population.timesteps
    shifted = local(cell.lanes.width)
    with T.serial(steps) as t:
        with cell.lanes.each() as lane:
            x = cell.arrays.x
            pivot = x[0, cell.place.channel + lane] if cell.population.repeated else x[0, 0, cell.place.channel + lane]
            at = [cell.place.n, cell.place.channel + lane]
            value = x[tuple(at)] if cell.population.repeated else x[(t, *at)]
            put(shifted, f32(value) - f32(pivot), lane)
        with cell.lanes.each() as lane:
            put(first, first[lane] + shifted[lane], lane)
        with cell.lanes.each() as lane:
            put(second, second[lane] + shifted[lane] * shifted[lane], lane)
    cell.add_sums(first, second)


@dataclass(slots=True)
class _Gradient:
    """The end of a backward kernel: sums over T and the window, gradients of the input."""

    cell: _CpuCell
    name: KernelName
    first: Buffer | None = None
    second: Buffer | None = None
    total: Buffer | None = None  # over time, of a repeated input

    def write(self) -> None:
        cell, name = self.cell, self.name
        if cell.arrays.sums is not None:
            self.first, self.second = self._zeros(), self._zeros()
        if name.writes_grad_x and cell.population.repeated:
            self.total = self._zeros(cell.pixels)
        backward(cell, self._result, spikes=name.writes_y)
        if self.total is not None:
            with T.unroll(cell.pixels) as k:
                cell.store_grad_x(0, k, lambda lane: self.total[k, lane])
        if self.first is not None and self.second is not None:
            cell.add_sums(self.first, self.second)

    def _zeros(self, *lead: int) -> Buffer:
        zeros = local(*lead, self.cell.lanes.width)
        with T.unroll(lead[0] if lead else 1) as k, self.cell.lanes.each() as lane:
            put(zeros, f32(0.0), *((k,) if lead else ()), lane)
        return zeros

    def _result(self, t: Index, k: Index, grad_m: Buffer) -> None:
        if self.first is not None:
            self._add(t, k, grad_m)
        if self.total is not None:
            with self.cell.lanes.each() as lane:
                put(self.total, self.total[k, lane] + self._grad_x(t, k, lane, grad_m), k, lane)
        elif self.name.writes_grad_x:
            self.cell.store_grad_x(t, k, lambda lane: self._grad_x(t, k, lane, grad_m))

    def _add(self, t: Index, k: Index, grad_m: Buffer) -> None:
        cell, valid = self.cell, self.cell.valid(k)

        def counted(lane: Index) -> Expr:
            return grad_m[k, lane] if valid is None else T.Select(valid, grad_m[k, lane], f32(0.0))

        with cell.lanes.each() as lane:
            put(self.first, self.first[lane] + counted(lane), lane)
        with cell.lanes.each() as lane:
            centred = cell.dynamics(lane).centred(cell.x(t, k, lane))
            put(self.second, self.second[lane] + counted(lane) * centred, lane)

    def _grad_x(self, t: Index, k: Index, lane: Index, grad_m: Buffer) -> Expr:
        return self.cell.dynamics(lane).grad_x(self.cell.x(t, k, lane), grad_m[k, lane])
