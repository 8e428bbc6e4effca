"""What the cells of every schedule share: their arrays, and which pixels and windows there are."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Protocol

from compiler.fused.body import Cell, Index
from compiler.fused.emit import Buffer, Expr, T, both, f32


@dataclass(slots=True)
class Arrays:
    """The arguments of a kernel; None where it has no such."""

    x: Buffer
    table: Buffer | None = None
    y: Buffer | None = None
    words: Buffer | None = None
    mask: Buffer | None = None
    grad_y: Buffer | None = None
    grad_x: Buffer | None = None
    sums: Buffer | None = None


def present(buffer: Buffer | None) -> Buffer:
    """An argument that this kernel has."""
    assert buffer is not None
    return buffer


@dataclass(frozen=True, slots=True)
class Grid:
    """Symbolic extents. Without pooling all pixels are one axis, which the schedule chooses."""

    n: Expr
    height: Index
    width: Index
    out_height: Index
    out_width: Index
    channels: Expr


class Position(Protocol):
    """Row and column of a window."""

    @property
    def row(self) -> Index: ...

    @property
    def column(self) -> Index: ...


class ArrayCell(Cell):
    """A cell that knows its place in the arrays; the schedule says how a place becomes indices."""

    arrays: Arrays
    grid: Grid
    place: Position

    @abstractmethod
    def input(self, t: Index, k: Index, lane: Index) -> list[Index]:
        """Indices into x."""

    @abstractmethod
    def output(self, t: Index, lane: Index) -> list[Index]:
        """Indices into y."""

    def x(self, t: Index, k: Index, lane: Index) -> Expr:
        return _guarded(self.valid(k), f32(self.arrays.x[tuple(self.input(t, k, lane))]))

    def grad_y(self, t: Index, lane: Index) -> Expr:
        return _guarded(self.kept(), f32(present(self.arrays.grad_y)[tuple(self.output(t, lane))]))

    @property
    def grad_target(self) -> Buffer:
        """Where gradients of the input go."""
        return present(self.arrays.grad_y if self.population.in_place else self.arrays.grad_x)

    def valid(self, k: Index) -> Expr | None:
        if self._exact():
            return None
        row, column = self.pixel(k)
        return both(row < self.grid.height, column < self.grid.width)

    def kept(self) -> Expr | None:
        """Whether the window has a result; None: always."""
        if self._exact():
            return None
        return both(self.place.row < self.grid.out_height, self.place.column < self.grid.out_width)

    def share(self) -> Expr:
        window = self.population.window
        assert window is not None
        rows, columns = window.kernel
        if window.exact:
            return f32(1 / (rows * columns))
        valid_rows = T.min(rows, self.grid.height - self.place.row * rows)
        return f32(1.0) / f32(valid_rows * T.min(columns, self.grid.width - self.place.column * columns))

    def pixel(self, k: Index) -> tuple[Expr, Expr]:
        """Row and column of a pixel of the window."""
        window = self.population.window
        assert window is not None
        rows, columns = window.kernel
        return self.place.row * rows + k // columns, self.place.column * columns + k % columns

    def _exact(self) -> bool:
        window = self.population.window
        return window is None or window.exact


def _guarded(condition: Expr | None, value: Expr) -> Expr:
    return value if condition is None else T.if_then_else(condition, value, f32(0.0))
