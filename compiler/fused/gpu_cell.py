"""One GPU thread's neuron, or pooling window of neurons: where its values stand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from compiler.fused.body import Cell, Index
from compiler.fused.emit import Buffer, Expr, Lanes, T, both, f32, local, put
from compiler.fused.population import KernelName, Population

MAX_HISTORY = 40  # membrane potentials for which time steps are unrolled: ptxas keeps them in registers, no spills


def unrolled(population: Population) -> bool:
    """Whether the time steps are unrolled, so that a thread's registers keep all membrane potentials backwards.

    Otherwise nvcc decides: where it keeps the loops they stand in the thread's local memory, cached in part.
    """
    return population.timesteps * _pixels(population) <= MAX_HISTORY


@dataclass(slots=True)
class Arrays:
    """The arguments of a kernel; None where it has no such."""

    x: Buffer
    table: Buffer | None = None
    y: Buffer | None = None
    grad_y: Buffer | None = None
    grad_x: Buffer | None = None
    sums: Buffer | None = None


@dataclass(frozen=True, slots=True)
class Grid:
    """Symbolic extents. Without pooling n is N * H * W, the others are 1."""

    n: Expr
    height: Index
    width: Index
    out_height: Index
    out_width: Index
    channels: Expr


@dataclass(frozen=True, slots=True)
class Place:
    """Where a cell stands: sample, row and column of windows, channel."""

    n: Expr
    row: Index
    column: Index
    channel: Expr


@dataclass(frozen=True)
class GpuCell(Cell):
    """A cell of one neuron a pixel; `numbers` holds its rows of the table in registers."""

    population: Population
    arrays: Arrays
    grid: Grid
    place: Place
    numbers: Mapping[str, Buffer]
    lanes: Lanes = Lanes(1)  # noqa: RUF009 frozen

    def steps(self) -> AbstractContextManager[Expr]:
        timesteps = self.population.timesteps
        loop: AbstractContextManager[Expr] = T.unroll(timesteps) if unrolled(self.population) else T.serial(timesteps)
        return loop

    def number(self, name: str, lane: Index) -> Expr:
        return self.numbers[name][0]

    def x(self, t: Index, k: Index, lane: Index) -> Expr:
        return _guarded(self.valid(k), f32(self.arrays.x[tuple(self._input(t, k))]))

    def grad_y(self, t: Index, lane: Index) -> Expr:
        assert self.arrays.grad_y is not None
        return _guarded(self._kept(), f32(self.arrays.grad_y[tuple(self._output(t))]))

    def store_y(self, t: Index, value: Callable[[Index], Expr]) -> None:
        _store(self.arrays.y, self._kept(), self._output(t), value(0))

    def store_grad_x(self, t: Index, k: Index, value: Callable[[Index], Expr]) -> None:
        target = self.arrays.grad_y if self.population.in_place else self.arrays.grad_x
        _store(target, self.valid(k), self._input(t, k), value(0))

    def valid(self, k: Index) -> Expr | None:
        if self._exact():
            return None
        row, column = self._pixel(k)
        return both(row < self.grid.height, column < self.grid.width)

    def share(self) -> Expr:
        window = self.population.window
        assert window is not None
        rows, columns = window.kernel
        if window.exact:
            return f32(1 / (rows * columns))
        valid_rows = T.min(rows, self.grid.height - self.place.row * rows)
        return f32(1.0) / f32(valid_rows * T.min(columns, self.grid.width - self.place.column * columns))

    def _exact(self) -> bool:
        window = self.population.window
        return window is None or window.exact

    def _kept(self) -> Expr | None:
        """Whether the window has a result."""
        if self._exact():
            return None
        return both(self.place.row < self.grid.out_height, self.place.column < self.grid.out_width)

    def _pixel(self, k: Index) -> tuple[Expr, Expr]:
        window = self.population.window
        assert window is not None
        rows, columns = window.kernel
        return self.place.row * rows + k // columns, self.place.column * columns + k % columns

    def _input(self, t: Index, k: Index) -> list[Index]:
        time = [] if self.population.repeated else [t]
        pixel = [] if self.population.window is None else list(self._pixel(k))
        return [*time, self.place.n, *pixel, self.place.channel]

    def _output(self, t: Index) -> list[Index]:
        pixel = [] if self.population.window is None else [self.place.row, self.place.column]
        return [t, self.place.n, *pixel, self.place.channel]


def window_rows(population: Population, name: KernelName, grid: Grid) -> tuple[Index, Index]:
    """Rows and columns of windows, those without a result among them: their inputs have gradients too."""
    window = population.window
    if window is None or name is KernelName.STATISTICS:
        return 1, 1
    if window.exact or name is KernelName.FORWARD:
        return grid.out_height, grid.out_width
    rows, columns = window.kernel
    return T.truncdiv(grid.height + rows - 1, rows), T.truncdiv(grid.width + columns - 1, columns)


@contextmanager
def only_if(condition: Expr | None) -> Iterator[None]:
    """The statements inside, under a condition; None is always true."""
    if condition is None:
        yield
    else:
        with T.If(condition), T.Then():
            yield


def register(value: Expr, dtype: str = "float32") -> Buffer:
    """The value in a register."""
    kept = local(1, dtype=dtype)
    put(kept, value, 0)
    return kept


def _guarded(condition: Expr | None, value: Expr) -> Expr:
    return value if condition is None else T.if_then_else(condition, value, f32(0.0))


def _store(target: Buffer | None, condition: Expr | None, indices: list[Index], value: Expr) -> None:
    assert target is not None
    with only_if(condition):
        T.buffer_store(target, T.cast(value, target.dtype), indices)


def _pixels(population: Population) -> int:
    window = population.window
    return 1 if window is None else window.kernel[0] * window.kernel[1]
