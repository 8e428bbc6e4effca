"""Time of the fused CPU kernels against the memory traffic that none can avoid.

    python -m tests.bench.fused_kernels --json

A kernel's bound is the time of a stream over arrays of the same sizes: what it must read is read once and in order,
what it must write is written once. Arrays are reused, so no page is touched for the first time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache

import torch
from torch import Tensor
from tvm.ir import IRModule

from compiler.fused.cpu import cpu_kernel, vector_lanes
from compiler.fused.emit import Buffer, T, argument, kernel, local, put
from compiler.fused.population import KernelName, Norm, Population, Window
from compiler.ir.values import Reset, Surrogate, SurrogateKind
from compiler.tvm_setup import host_target, thread_count, tvm

L3_MB = 32.0
TIMESTEPS = 10
LAYERS = ((64, 32), (128, 32), (128, 16), (256, 16), (256, 8), (512, 8))  # channels, height = width
CHUNKS = 64  # of a stream, dealt out to the threads
POOLS = {"none": None, "average": Window(kernel=(2, 2), average=True), "maximum": Window(kernel=(2, 2), average=False)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One kernel on one layer shape."""

    kernel: str
    pool: str
    surrogate: str
    channels: int
    size: int
    batch: int
    traffic_mb: float
    time_ms: float
    bound_ms: float
    bound_gb_per_s: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Streams:
    """Arrays that a kernel reads and writes; the small ones are `ratio` times smaller than the large ones."""

    large_in: int
    large_out: int
    small_in: int = 0
    small_out: int = 0
    ratio: int = 1


def streams(name: KernelName, population: Population) -> Streams:
    """What the kernel must read and write, tables and sums left out; large is x, small what the window makes of it."""
    window = population.window
    ratio = 1 if window is None else window.kernel[0] * window.kernel[1]
    reads, writes, gradient, result = 1, int(name.writes_grad_x), int(name.backward), int(name.writes_y)
    if window is None:
        return Streams(reads + gradient, writes + result)
    return Streams(reads, writes, gradient, result, ratio)


@lru_cache(maxsize=64)
def stream(shape: Streams, *, in_place: bool) -> Callable[..., None]:
    """A kernel that streams over such arrays, flat and a multiple of CHUNKS * 16 * ratio long."""
    function = kernel("stream", lambda: _stream(shape, vector_lanes(), in_place=in_place))
    executable = tvm.compile(IRModule({"stream": function}), target=host_target())
    entry: Callable[..., None] = executable["stream"]
    return entry


def _stream(shape: Streams, width: int, *, in_place: bool) -> None:
    length, small_length = T.int64(), T.int64()
    large = [argument(f"large_in{i}", [length]) for i in range(shape.large_in)]
    small = [argument(f"small_in{i}", [small_length]) for i in range(shape.small_in)]
    fresh = shape.large_out - int(in_place)
    large_out = [argument(f"large_out{i}", [length]) for i in range(fresh)]
    large_out += large[-1:] if in_place else []
    small_out = [argument(f"small_out{i}", [small_length]) for i in range(shape.small_out)]
    result = argument("result", [CHUNKS, width])
    lines = length // (CHUNKS * width * shape.ratio)
    with T.parallel(CHUNKS) as chunk:
        total = local(width)
        _lanes(width, total, lambda _lane: T.float32(0))
        with T.serial(lines) as line:
            start = (chunk * lines + line) * width
            for array in small:
                _lanes(width, total, lambda lane, array=array: total[lane] + array[start + lane])
            with T.unroll(shape.ratio) as k:
                place = start * shape.ratio + k * width
                for array in large:
                    _lanes(width, total, lambda lane, array=array, place=place: total[lane] + array[place + lane])
                for array in large_out:
                    with T.vectorized(width) as lane:
                        put(array, total[lane], place + lane)
            for array in small_out:
                with T.vectorized(width) as lane:
                    put(array, total[lane], start + lane)
        with T.vectorized(width) as lane:
            put(result, total[lane], chunk, lane)


def _lanes(width: int, target: Buffer, value: Callable[..., object]) -> None:
    with T.vectorized(width) as lane:
        put(target, value(lane), lane)


def best_ms(call: Callable[[], object], repeats: int) -> float:
    """Shortest wall time of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


@lru_cache(maxsize=256)
def compiled(population: Population) -> dict[KernelName, Callable[..., None]]:
    """The population's kernels for channels that are a multiple of the lanes."""
    functions = {
        str(name): cpu_kernel(population, name, lanes=vector_lanes(), tail=False) for name in population.kernels
    }
    executable = tvm.compile(IRModule(functions), target=host_target())
    return {name: executable[str(name)] for name in population.kernels}


@dataclass(frozen=True, slots=True)
class Layer:
    """Arrays of one layer shape."""

    population: Population
    channels: int
    size: int
    batch: int

    def arguments(self, name: KernelName) -> list[Tensor]:
        """What the kernel takes: membrane potentials spread around the threshold, as after a batch norm."""
        steps, window = self.population.timesteps, self.population.window
        pixels = (self.batch, self.size, self.size)
        small = pixels if window is None else (self.batch, *(self.size // k for k in window.kernel))
        flat = window is None or name is KernelName.STATISTICS
        x_shape = (steps, self.batch * self.size**2, self.channels) if flat else (steps, *pixels, self.channels)
        y_shape = x_shape if window is None else (steps, *small, self.channels)
        torch.manual_seed(0)
        table = torch.zeros(max(1, len(self.population.rows)), self.channels)
        if "gain" in self.population.rows:
            table[self.population.rows.index("gain")] = 1.0
        values = [torch.randn(x_shape)]
        if name is KernelName.STATISTICS:
            return [*values, self._sums()]
        values += [table] if self.population.rows else []
        values += [torch.randn(y_shape)] if name.backward else []
        values += [torch.zeros(x_shape)] if name.writes_grad_x and not self.population.in_place else []
        values += [self._sums()] if name.writes_sums(self.population.norm) else []
        return [*values, *([torch.zeros(y_shape)] if name.writes_y else [])]

    def _sums(self) -> Tensor:
        return torch.zeros(4 * thread_count(), 2, self.channels, dtype=torch.float64)

    def bound(self, name: KernelName, repeats: int) -> tuple[float, float]:
        """Milliseconds of the stream and the megabytes that it moves."""
        shape = streams(name, self.population)
        in_place = name.writes_grad_x and self.population.in_place
        large = self.population.timesteps * self.batch * self.size**2 * self.channels
        fresh = shape.large_out - int(in_place)
        arrays = [torch.ones(large) for _ in range(shape.large_in)]
        arrays += [torch.ones(large // shape.ratio) for _ in range(shape.small_in)]
        arrays += [torch.zeros(large) for _ in range(fresh)]
        arrays += [torch.zeros(large // shape.ratio) for _ in range(shape.small_out)]
        entry = stream(shape, in_place=in_place)
        result = torch.zeros(CHUNKS, vector_lanes())
        elements = large * (shape.large_in + shape.large_out)
        elements += large // shape.ratio * (shape.small_in + shape.small_out)
        return best_ms(lambda: entry(*arrays, result), repeats), elements * 4 / 1e6


def rows(layer: Layer, pool: str, repeats: int) -> Iterator[Row]:
    """One row per kernel of the layer's training step."""
    for name, entry in compiled(layer.population).items():
        arguments = layer.arguments(name)
        in_place = name.writes_grad_x and layer.population.in_place
        repeats_now = min(repeats, 50) if in_place else repeats  # it changes at each call, and must stay finite
        time_ms = best_ms(lambda entry=entry, arguments=arguments: entry(*arguments), repeats_now)
        bound_ms, traffic = layer.bound(name, repeats)
        yield Row(
            kernel=str(name),
            pool=pool,
            surrogate=str(layer.population.surrogate.kind),
            channels=layer.channels,
            size=layer.size,
            batch=layer.batch,
            traffic_mb=traffic,
            time_ms=time_ms,
            bound_ms=bound_ms,
            bound_gb_per_s=traffic / bound_ms,
            ratio=time_ms / bound_ms,
        )


def population(pool: str, surrogate: SurrogateKind, norm: Norm) -> Population:
    """The dissertation's neuron behind a batch norm."""
    return Population(
        timesteps=TIMESTEPS,
        decay=0.25,
        threshold=0.5,
        reset=Reset.HARD,
        surrogate=Surrogate(kind=surrogate),
        norm=norm,
        window=POOLS[pool],
    )


def _text(row: Row) -> str:
    shape = f"C={row.channels:3d} {row.size:2d}x{row.size:<2d} batch {row.batch:2d}"
    return (
        f"{shape} pool {row.pool:7s} {row.kernel:14s} {row.traffic_mb:6.1f} MB {row.time_ms:7.3f} ms, "
        f"bound {row.bound_ms:7.3f} ms ({row.bound_gb_per_s:5.1f} GB/s), ratio {row.ratio:4.2f}"
    )


def _summary(measured: list[Row]) -> str:
    large = [row for row in measured if row.traffic_mb > L3_MB]
    time_ms, bound_ms = sum(row.time_ms for row in large), sum(row.bound_ms for row in large)
    worst = max((row.ratio for row in large), default=0.0)
    return f"beyond {L3_MB:.0f} MB: sum {time_ms:.1f} ms, bound {bound_ms:.1f} ms, worst ratio {worst:.2f}"


def main() -> None:
    """Print one line, or one JSON object, per kernel and layer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object with all rows")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--pool", choices=POOLS, nargs="*", default=["none", "average"])
    parser.add_argument("--surrogate", choices=list(SurrogateKind), default=SurrogateKind.RECTANGLE)
    parser.add_argument("--norm", choices=list(Norm), default=Norm.BATCH)
    parser.add_argument("--batch", type=int, nargs="*", default=[4, 16])
    parser.add_argument("--layers", type=int, nargs="*", default=range(len(LAYERS)), help="indices of the shapes")
    options = parser.parse_args()
    measured = []
    for pool in options.pool:
        about = population(pool, SurrogateKind(options.surrogate), Norm(options.norm))
        for channels, size in (LAYERS[index] for index in options.layers):
            for batch in options.batch:
                for row in rows(Layer(about, channels, size, batch), pool, options.repeats):
                    measured.append(row)
                    if not options.json:
                        print(_text(row), flush=True)
    if options.json:
        print(
            json.dumps({"threads": thread_count(), "timesteps": TIMESTEPS, "rows": [asdict(row) for row in measured]})
        )
    else:
        print(f"{thread_count()} threads; {_summary(measured)}")


if __name__ == "__main__":
    main()
