"""Sums over the threads of a block, and what a batch norm makes of them."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.fused.cpu import SUMS
from compiler.fused.emit import Buffer, Expr, T, both, f32, local, put
from compiler.fused.gpu_cell import only_if, register
from compiler.fused.population import Norm, Population


@dataclass(frozen=True, slots=True)
class Tile:
    """A block of threads: `tile` neighbouring channels times rows; the thread's channel may be outside."""

    thread: Expr
    threads: int
    tile: int
    channels: Expr
    channel: Expr  # of this thread
    row: Expr

    @property
    def rows(self) -> int:
        """Threads of one channel."""
        return self.threads // self.tile

    @property
    def inside(self) -> Expr:
        """Whether the thread's channel exists."""
        return self.channel < self.channels

    def totals(self, first: Buffer, second: Buffer) -> tuple[Buffer, Buffer]:
        """Both f64 registers added up over the rows, known to each thread of the channel.

        No branch encloses the reads of shared memory: barriers stand between them and the writes.
        """
        shared = T.alloc_buffer((2, self.threads), SUMS, scope="shared")
        kept = (local(1, dtype=SUMS), local(1, dtype=SUMS))
        for at, value in enumerate((first, second)):
            put(shared, value[0], at, self.thread)
        half = self.threads // 2
        while half >= self.tile:
            for at in (0, 1):
                other = T.if_then_else(self.thread < half, shared[at, self.thread + half], T.float64(0))
                put(kept[at], shared[at, self.thread] + other, 0)
            for at in (0, 1):
                put(shared, kept[at][0], at, self.thread)
            half //= 2
        for at in (0, 1):
            put(kept[at], shared[at, T.truncmod(self.thread, self.tile)], 0)
        return kept

    def partial_sums(self, sums: Buffer) -> tuple[Buffer, Buffer]:
        """The channel's partial sums added up over their groups."""
        first, second = register(T.float64(0), SUMS), register(T.float64(0), SUMS)
        groups = sums.shape[0]
        with T.serial(T.truncdiv(groups + self.rows - 1, self.rows)) as at:
            group = at * self.rows + self.row
            with only_if(both(group < groups, self.inside)):
                for index, total in enumerate((first, second)):
                    put(total, total[0] + sums[group, index, self.channel], 0)
        return self.totals(first, second)


@dataclass(frozen=True, slots=True)
class NormArrays:
    """Arguments of a kernel that makes a batch norm's rows of the table."""

    moments: Buffer
    weight: Buffer
    bias: Buffer
    scale: Buffer
    leak: Buffer
    table: Buffer
    reciprocal: Buffer
    eps: Expr

    def rows(
        self, population: Population, channel: Expr, found: tuple[Expr, Expr] | None, writes: Expr
    ) -> dict[str, Buffer]:
        """Rows shift, gain and offset in registers; written by the threads for which `writes` holds.

        found: mean and variance; None: they stand in the moments.
        Source: equations 4.2 and 4.3.
        """
        mean, variance = (register(self.moments[at, channel] if found is None else found[at], SUMS) for at in (0, 1))
        reciprocal = register(T.float64(1) / T.sqrt(variance[0] + self.eps), SUMS)
        factor = T.cast(self.scale[channel], SUMS)
        gain = T.cast(self.weight[channel], SUMS) * reciprocal[0] * factor
        offset = T.cast(self.bias[channel], SUMS) * factor + T.cast(self.leak[channel], SUMS)
        rows = {"shift": register(f32(mean[0])), "gain": register(f32(gain)), "offset": register(f32(offset))}
        with only_if(writes):
            put(self.reciprocal, reciprocal[0], channel)
            for name, value in rows.items():
                put(self.table, value[0], population.rows.index(name), channel)
            if found is not None:
                put(self.moments, mean[0], 0, channel)
                put(self.moments, variance[0], 1, channel)
        return rows


@dataclass(frozen=True, slots=True)
class FinishArrays:
    """Arguments of `finish`."""

    sums: Buffer
    reciprocal: Buffer
    scale: Buffer
    table: Buffer
    grad_weight: Buffer
    grad_bias: Buffer
    count: Expr


def finish(population: Population, arrays: FinishArrays, tile: Tile) -> None:
    """The parameters' gradients from the partial sums, and what gradient_input subtracts.

    Source: equations 4.3, 4.5 and 4.6.
    """
    first, second = tile.partial_sums(arrays.sums)
    channel = tile.channel
    with only_if(both(tile.thread < tile.tile, tile.inside)):
        reciprocal = register(arrays.reciprocal[channel], SUMS)
        factor = T.cast(arrays.scale[channel], SUMS)
        put(arrays.grad_bias, f32(factor * first[0]), channel)
        put(arrays.grad_weight, f32(factor * reciprocal[0] * second[0]), channel)
        if population.norm is Norm.BATCH:
            mean_grad, mean_grad_x = (population.rows.index(name) for name in ("mean_grad", "mean_grad_x"))
            put(arrays.table, f32(first[0] / arrays.count), mean_grad, channel)
            squared = reciprocal[0] * reciprocal[0]
            put(arrays.table, f32(squared * second[0] / arrays.count), mean_grad_x, channel)
