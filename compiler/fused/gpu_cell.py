"""One GPU thread's neuron, or pooling window of neurons: where its values stand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from compiler.fused.array_cell import ArrayCell, Arrays, Grid, present
from compiler.fused.body import Index
from compiler.fused.emit import Buffer, Expr, Lanes, T, local, put
from compiler.fused.population import KernelName, Population

MAX_HISTORY = 40  # membrane potentials for which time steps are unrolled: ptxas keeps them in registers, no spills


def unrolled(population: Population) -> bool:
    """Whether the time steps are unrolled, so that a thread's registers keep all membrane potentials backwards.

    Otherwise nvcc decides: where it keeps the loops they stand in the thread's local memory, cached in part.
    """
    return population.timesteps * _pixels(population) <= MAX_HISTORY


@dataclass(frozen=True, slots=True)
class Place:
    """Where a cell stands: sample, row and column of windows, channel."""

    n: Expr
    row: Index
    column: Index
    channel: Expr


@dataclass(frozen=True)
class GpuCell(ArrayCell):
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

    def store_y(self, t: Index, value: Callable[[Index], Expr]) -> None:
        _store(present(self.arrays.y), self.kept(), self.output(t, 0), value(0))

    def store_grad_x(self, t: Index, k: Index, value: Callable[[Index], Expr]) -> None:
        _store(self.grad_target, self.valid(k), self.input(t, k, 0), value(0))

    def input(self, t: Index, k: Index, lane: Index) -> list[Index]:
        time = [] if self.population.repeated else [t]
        pixel = [] if self.population.window is None else list(self.pixel(k))
        return [*time, self.place.n, *pixel, self.place.channel]

    def output(self, t: Index, lane: Index) -> list[Index]:
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


def _store(target: Buffer, condition: Expr | None, indices: list[Index], value: Expr) -> None:
    with only_if(condition):
        T.buffer_store(target, T.cast(value, target.dtype), indices)


def _pixels(population: Population) -> int:
    window = population.window
    return 1 if window is None else window.kernel[0] * window.kernel[1]
