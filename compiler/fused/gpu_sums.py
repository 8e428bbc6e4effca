"""What one GPU thread adds up over time and window: statistics, and gradients of parameters or repeated inputs."""

from __future__ import annotations

from dataclasses import dataclass, field

from compiler.fused.body import Index, backward
from compiler.fused.cpu import SUMS
from compiler.fused.emit import Buffer, Expr, T, f32, local, put, select
from compiler.fused.gpu_cell import GpuCell, register
from compiler.fused.population import KernelName

Added = tuple[Buffer, Buffer]  # f64 registers, over all cells of the thread


def statistics(cell: GpuCell, added: Added) -> None:
    """Sums of x - x[0] and its square: the shift keeps a large mean from cancelling the variance."""
    first, second = register(f32(0.0)), register(f32(0.0))
    shifted = local(1)
    with T.serial(1 if cell.population.repeated else cell.population.timesteps) as t:
        time = [] if cell.population.repeated else [t]
        x = f32(cell.arrays.x[(*time, cell.place.n, cell.place.channel)])
        put(shifted, x - cell.number("pivot", 0), 0)
        put(first, first[0] + shifted[0], 0)
        put(second, second[0] + shifted[0] * shifted[0], 0)
    _add(added, first, second)


@dataclass(slots=True)
class Gradient:
    """A backward kernel's thread: sums in f32 over T and the window, in f64 over cells; gradients of the input."""

    cell: GpuCell
    name: KernelName
    added: Added | None
    sums: tuple[Buffer, Buffer] | None = field(init=False, default=None)
    total: Buffer | None = field(init=False, default=None)  # over time, of a repeated input

    def write(self) -> None:
        cell, name = self.cell, self.name
        if self.added is not None:
            self.sums = register(f32(0.0)), register(f32(0.0))
        if name.writes_grad_x and cell.population.repeated:
            self.total = local(cell.pixels)
            with T.unroll(cell.pixels) as k:
                put(self.total, f32(0.0), k)
        backward(cell, self._result, spikes=name.writes_y)
        total = self.total
        if total is not None:
            with T.unroll(cell.pixels) as k:
                cell.store_grad_x(0, k, lambda _: total[k])
        if self.added is not None and self.sums is not None:
            _add(self.added, *self.sums)

    def _result(self, t: Index, k: Index, grad_m: Buffer) -> None:
        if self.sums is not None:
            self._count(t, k, grad_m, *self.sums)
        if self.total is not None:
            put(self.total, self.total[k] + self._grad_x(t, k, grad_m), k)
        elif self.name.writes_grad_x:
            self.cell.store_grad_x(t, k, lambda _: self._grad_x(t, k, grad_m))

    def _count(self, t: Index, k: Index, grad_m: Buffer, first: Buffer, second: Buffer) -> None:
        cell, valid = self.cell, self.cell.valid(k)
        counted = grad_m[k, 0] if valid is None else select(valid, grad_m[k, 0], f32(0.0))
        put(first, first[0] + counted, 0)
        put(second, second[0] + counted * cell.dynamics(0).centred(cell.x(t, k, 0)), 0)

    def _grad_x(self, t: Index, k: Index, grad_m: Buffer) -> Expr:
        return self.cell.dynamics(0).grad_x(self.cell.x(t, k, 0), grad_m[k, 0])


def _add(added: Added, *sums: Buffer) -> None:
    for total, value in zip(added, sums, strict=True):
        put(total, total[0] + T.cast(value[0], SUMS), 0)
