"""The kernels for GPUs: one thread a neuron or a pooling window, channels innermost so that a warp's reads coalesce."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from compiler.fused.array_cell import Arrays, Grid
from compiler.fused.body import Index, forward
from compiler.fused.cpu import SUMS
from compiler.fused.emit import Buffer, Expr, T, argument, both, f32, kernel, put, tirx
from compiler.fused.gpu_cell import GpuCell, Place, only_if, register, window_rows
from compiler.fused.gpu_launch import GpuKernel, GpuSchedule, threads_of, tiled
from compiler.fused.gpu_reduce import FinishArrays, NormArrays, Tile, finish
from compiler.fused.gpu_sums import Gradient, statistics
from compiler.fused.population import KernelName, Norm, Population

from tvm.script.ir_builder import IRBuilder  # isort: skip

_OF_THE_NORM = ("shift", "gain", "offset")


def gpu_kernel(population: Population, name: GpuKernel, schedule: GpuSchedule, symbol: str) -> tirx.PrimFunc:
    """One kernel of a population, see `GpuKernel`, called `symbol` in the source.

    Shapes: as `compiler.fused.cpu.cpu_kernel`. The device function takes the arrays and the extents n, height, width,
    out_height, out_width, channels, groups, sum_groups by these names.
    """
    if name is GpuKernel.FINISH:
        return kernel(symbol, _Finish(population, schedule).write)
    return kernel(symbol, _Writer(population, name, schedule).write)


@dataclass(slots=True)
class _Writer:
    """Declares the arguments of one kernel and writes its threads."""

    population: Population
    name: GpuKernel
    schedule: GpuSchedule
    cpu_name: KernelName = field(init=False)
    grid: Grid = field(init=False)
    arrays: Arrays = field(init=False)
    norm: NormArrays | None = field(init=False, default=None)
    statistics: Buffer | None = field(init=False, default=None)  # partial sums that forward reads

    def write(self) -> None:
        assert self.name.cpu_name is not None
        self.cpu_name = self.name.cpu_name
        self._declare()
        if tiled(self.population, self.name):
            self._tiles()
        else:
            self._flat()

    def _declare(self) -> None:
        population, name = self.population, self.cpu_name
        pooled = population.window is not None and name is not KernelName.STATISTICS
        self.grid = grid = self._extents(pooled)
        pixels = [grid.height, grid.width] if pooled else []
        results = [grid.out_height, grid.out_width] if pooled else []
        lead: list[Index] = [] if population.repeated else [population.timesteps]
        x_shape = [*lead, grid.n, *pixels, grid.channels]
        y_shape = [population.timesteps, grid.n, *results, grid.channels]
        dtype = str(population.activation)
        self.arrays = arrays = Arrays(named_argument("x", x_shape, dtype))
        if name is KernelName.FORWARD and population.norm is not Norm.NONE:
            self._declare_norm()
        elif name is not KernelName.STATISTICS and population.rows:
            arrays.table = named_argument("table", [len(population.rows), grid.channels])
        if name.backward:
            arrays.grad_y = named_argument("grad_y", y_shape, dtype)
        if name.writes_grad_x and not population.in_place:
            arrays.grad_x = named_argument("grad_x", x_shape, dtype)
        if name.writes_sums(population.norm):
            arrays.sums = named_argument("sums", [self._extent("groups"), 2, grid.channels], SUMS)
        if name.writes_y:
            arrays.y = named_argument("y", y_shape, dtype)

    def _extents(self, pooled: bool) -> Grid:
        n, channels = self._extent("n"), self._extent("channels")
        if not pooled:
            return Grid(n, 1, 1, 1, 1, channels)
        height, width, out_height, out_width = map(self._extent, ("height", "width", "out_height", "out_width"))
        return Grid(n, height, width, out_height, out_width, channels)

    def _declare_norm(self) -> None:
        channels = self.grid.channels
        if self.population.norm is Norm.BATCH:
            self.statistics = named_argument("sums", [self._extent("sum_groups"), 2, channels], SUMS)
        moments = named_argument("moments", [2, channels], SUMS)
        weight, bias, scale, leak = (named_argument(name, [channels]) for name in ("weight", "bias", "scale", "leak"))
        table = named_argument("table", [len(self.population.rows), channels])
        reciprocal = named_argument("reciprocal", [channels], SUMS)
        eps = T.arg("eps", T.float64())
        self.arrays.table = table
        self.norm = NormArrays(moments, weight, bias, scale, leak, table, reciprocal, eps)

    def _extent(self, name: str) -> Expr:
        return extent(name, self.schedule)

    def _flat(self) -> None:
        """One thread a cell."""
        threads, channels = threads_of(self.name), self.grid.channels
        rows, columns = window_rows(self.population, self.cpu_name, self.grid)
        total = self.grid.n * rows * columns * channels
        blocks = T.truncdiv(total + threads - 1, threads)
        with T.launch_thread("blockIdx.x", blocks) as block, T.launch_thread("threadIdx.x", threads) as thread:
            index = block * threads + thread
            with only_if(index < total):
                numbers = self._from_table(T.truncmod(index, channels), self.population.rows)
                if self.population.window is None:  # floor forms, which simplify to the index itself
                    place = Place(index // channels, 0, 0, index % channels)
                else:
                    place = self._place(T.truncdiv(index, channels), T.truncmod(index, channels))
                self._cell(self._at(place, numbers), None)

    def _tiles(self) -> None:
        """Blocks of a tile of channels that walk over the cells."""
        sums = self.arrays.sums
        groups = sums.shape[0] if sums is not None else T.arg("groups", self._scalar())
        with launched_tile(self.name, self.schedule, self.grid.channels, groups) as (tile, group):
            added = None
            if sums is not None:
                added = register(T.float64(0), SUMS), register(T.float64(0), SUMS)
            found = self._moments(tile)
            with only_if(tile.inside):
                self._walk(tile, group, groups, self._numbers(tile, group, found), added)
            if sums is not None and added is not None:
                totals = tile.totals(*added)
                with only_if(both(tile.thread < tile.tile, tile.inside)):
                    for at in (0, 1):
                        put(sums, totals[at][0], group, at, tile.channel)

    def _scalar(self) -> Expr:
        return T.int32() if self.schedule.index == "int32" else T.int64()

    def _walk(
        self,
        tile: Tile,
        group: Expr,
        groups: Expr,
        numbers: Mapping[str, Buffer],
        added: tuple[Buffer, Buffer] | None,
    ) -> None:
        rows, columns = window_rows(self.population, self.cpu_name, self.grid)
        cells, stride = self.grid.n * rows * columns, groups * tile.rows
        with T.serial(T.truncdiv(cells + stride - 1, stride)) as turn:
            index = turn * stride + group * tile.rows + tile.row
            with only_if(index < cells):
                self._cell(self._at(self._place(index, tile.channel), numbers), added)

    def _place(self, index: Expr, channel: Expr) -> Place:
        if self.population.window is None or self.name is GpuKernel.STATISTICS:
            return Place(index, 0, 0, channel)
        rows, columns = window_rows(self.population, self.cpu_name, self.grid)
        row = T.truncdiv(index, columns)
        return Place(T.truncdiv(row, rows), T.truncmod(row, rows), T.truncmod(index, columns), channel)

    def _at(self, place: Place, numbers: Mapping[str, Buffer]) -> GpuCell:
        return GpuCell(self.population, self.arrays, self.grid, place, numbers)

    def _moments(self, tile: Tile) -> tuple[Buffer, Buffer] | None:
        """Totals of the statistics, of which `forward` makes the moments."""
        return None if self.statistics is None else tile.partial_sums(self.statistics)

    def _numbers(self, tile: Tile, group: Expr, totals: tuple[Buffer, Buffer] | None) -> Mapping[str, Buffer]:
        if self.name is GpuKernel.STATISTICS:
            return {"pivot": register(f32(self._pivot(tile.channel)))}
        if self.norm is None:
            return self._from_table(tile.channel, self.population.rows)
        found = None if totals is None else self._mean_and_variance(totals, tile.channel)
        writes = both(group == 0, tile.thread < tile.tile)
        rows = self.norm.rows(self.population, tile.channel, found, writes)
        others = tuple(row for row in self.population.rows if row not in _OF_THE_NORM)
        return rows | self._from_table(tile.channel, others)

    def _mean_and_variance(self, totals: tuple[Buffer, Buffer], channel: Expr) -> tuple[Expr, Expr]:
        steps = 1 if self.population.repeated else self.population.timesteps
        count = T.cast(self.grid.n * self.grid.height * self.grid.width * steps, SUMS)
        mean = register(totals[0][0] / count, SUMS)
        variance = T.max(totals[1][0] / count - mean[0] * mean[0], T.float64(0))
        return T.cast(f32(self._pivot(channel)), SUMS) + mean[0], variance

    def _pivot(self, channel: Expr) -> Expr:
        """Each channel's first value."""
        x = self.arrays.x
        return x[(*([0] * (len(x.shape) - 1)), channel)]

    def _from_table(self, channel: Expr, names: tuple[str, ...]) -> dict[str, Buffer]:
        if self.name in (GpuKernel.FORWARD, GpuKernel.GRADIENT_SUMS):  # rows that gradient_input alone reads
            names = tuple(name for name in names if name not in ("mean_grad", "mean_grad_x"))
        table, rows = self.arrays.table, self.population.rows
        return {name: register(table[rows.index(name), channel]) for name in names if table is not None}

    def _cell(self, cell: GpuCell, added: tuple[Buffer, Buffer] | None) -> None:
        match self.name:
            case GpuKernel.STATISTICS:
                assert added is not None
                statistics(cell, added)
            case GpuKernel.FORWARD:
                forward(cell)
            case _:
                Gradient(cell, self.cpu_name, added).write()


@dataclass(frozen=True, slots=True)
class _Finish:
    population: Population
    schedule: GpuSchedule

    def write(self) -> None:
        channels, groups = extent("channels", self.schedule), extent("groups", self.schedule)
        arrays = FinishArrays(
            sums=named_argument("sums", [groups, 2, channels], SUMS),
            reciprocal=named_argument("reciprocal", [channels], SUMS),
            scale=named_argument("scale", [channels]),
            table=named_argument("table", [len(self.population.rows), channels]),
            grad_weight=named_argument("grad_weight", [channels]),
            grad_bias=named_argument("grad_bias", [channels]),
            count=T.arg("count", T.float64()),
        )
        with launched_tile(GpuKernel.FINISH, self.schedule, channels, None) as (tile, _):
            finish(self.population, arrays, tile)


@contextmanager
def launched_tile(
    name: GpuKernel, schedule: GpuSchedule, channels: Expr, groups: Expr | None
) -> Iterator[tuple[Tile, Expr]]:
    """The threads of the grid (tiles of channels, groups), each with its tile and group."""
    threads, tile = threads_of(name), schedule.tile
    blocks, rows = T.truncdiv(channels + tile - 1, tile), 1 if groups is None else groups
    with (
        T.launch_thread("blockIdx.x", blocks) as block,
        T.launch_thread("blockIdx.y", rows) as group,
        T.launch_thread("threadIdx.x", threads) as thread,
    ):
        channel = block * tile + T.truncmod(thread, tile)
        yield Tile(thread, threads, tile, channels, channel, T.truncdiv(thread, tile)), group


def extent(name: str, schedule: GpuSchedule) -> Expr:
    """A symbolic extent, under its name in the device function too."""
    symbol = T.int32() if schedule.index == "int32" else T.int64()
    IRBuilder.name(name, symbol)
    return symbol


def named_argument(name: str, shape: Sequence[Index], dtype: str = "float32") -> Buffer:
    """The next argument, under its name in the device function too."""
    buffer = argument(name, shape, dtype)
    IRBuilder.name(name, buffer)
    return buffer
